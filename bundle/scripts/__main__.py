"""``python -m scripts COMMAND``; ``python -m scripts --help`` lists the commands."""

from .commands.app import main

if __name__ == "__main__":
    main()
