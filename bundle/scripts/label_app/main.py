"""What ``monailabel start_server --app bundle/scripts/label_app`` loads: the app, once its bundle can be imported."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the server loads this file alone

from scripts.label_app.server.app import TissueLabelApp  # noqa: E402

__all__ = ["TissueLabelApp"]
