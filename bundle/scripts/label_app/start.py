"""Start MONAI Label's server with this app, for this machine alone unless ``--host`` says otherwise.

python -m scripts.label_app.start --studies FOLDER [--port 8000] [any option of ``monailabel start_server``]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

DEFAULTS = ("--app", str(Path(__file__).resolve().parent), "--host", "127.0.0.1")


def command_line(given: Sequence[str]) -> list[str]:
    """The words after ``monailabel``: what is given comes last, and so takes the place of a default.

    MONAI Label's own default host is the whole network, and it asks nobody for a password.
    """
    return ["start_server", *DEFAULTS, *given]


if __name__ == "__main__":
    from monailabel.main import Main

    sys.argv[1:] = command_line(sys.argv[1:])
    Main().run()
