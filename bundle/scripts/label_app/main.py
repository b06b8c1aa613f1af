"""Entry point of ``monailabel start_server --app bundle/scripts/label_app``: makes the bundle importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the server loads only this file

from scripts.label_app.server.app import TissueLabelApp  # noqa: E402

__all__ = ["TissueLabelApp"]
