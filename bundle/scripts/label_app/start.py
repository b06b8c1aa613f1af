"""Start MONAI Label's server with this app, reachable only from this machine unless ``--host`` is given."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import BundleError

APP = Path(__file__).resolve().parent


def command_line(app: Path, given: Sequence[str]) -> list[str]:
    """The arguments of ``monailabel``: the given ones come last and so override the defaults.

    By default MONAI Label listens on all network interfaces, without authentication.
    """
    return ["start_server", "--app", str(app), "--host", "127.0.0.1", *given]


def start(run: str | Path | None, given: Sequence[str]) -> None:
    """Start the server and block until it ends.

    Args:
        run: the folder of the finished run whose network is used; ``None`` for the one that contains this code.
        given: options of ``monailabel start_server``.

    Raises:
        BundleError: if the run does not exist, or MONAI Label is not installed.
    """
    app = APP if run is None else Path(run).resolve() / "scripts" / "label_app"
    if not (app / "main.py").is_file():
        raise BundleError(f"`run` must be the folder of a finished run, got {run}, which has no scripts/label_app.")
    try:
        from monailabel.main import Main
    except ModuleNotFoundError as error:
        raise BundleError("MONAI Label must be installed, in a separate environment; see docs/label.md.") from error
    sys.argv[1:] = command_line(app, given)
    Main().run()
