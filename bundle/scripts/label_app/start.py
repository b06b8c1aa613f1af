"""Start MONAI Label's server with this app, for this machine alone unless ``--host`` says otherwise."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import BundleError

APP = Path(__file__).resolve().parent


def command_line(app: Path, given: Sequence[str]) -> list[str]:
    """The words after ``monailabel``: what is given comes last, and so takes the place of a default.

    MONAI Label's own default host is the whole network, and it asks nobody for a password.
    """
    return ["start_server", "--app", str(app), "--host", "127.0.0.1", *given]


def start(run: str | Path | None, given: Sequence[str]) -> None:
    """Start the server, and stay until it ends.

    Args:
        run: the folder of the finished run that proposes outlines; ``None`` for the one whose code this is.
        given: options of ``monailabel start_server``.

    Raises:
        BundleError: if there is no such run, or MONAI Label is not installed.
    """
    app = APP if run is None else Path(run).resolve() / "scripts" / "label_app"
    if not (app / "main.py").is_file():
        raise BundleError(f"`run` must be the folder of a finished run, got {run}; it has no scripts/label_app.")
    try:
        from monailabel.main import Main
    except ModuleNotFoundError as error:
        raise BundleError(
            "MONAI Label must be installed, in an environment of its own; see docs/label.md for how."
        ) from error
    sys.argv[1:] = command_line(app, given)
    Main().run()
