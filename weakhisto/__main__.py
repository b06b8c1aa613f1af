"""``python -m weakhisto COMMAND``, from any folder: the bundle's ``python -m scripts``."""

from .command import main

main()
