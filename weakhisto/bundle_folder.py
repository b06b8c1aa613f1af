"""Find the bundle and make its package ``scripts`` importable."""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PLACES = (HERE / "bundle", HERE.parent / "bundle")  # inside this package if installed, beside it in a checkout
DOOR = Path("scripts", "inference", "segmenter.py")


def make_importable() -> Path:
    """Put the bundle's folder on ``sys.path``, unless its package ``scripts``, or a copy of it, is already imported.

    Returns:
        The folder of the bundle whose code is used.

    Raises:
        ImportError: if another package named ``scripts`` is already imported, or the bundle is not found.
    """
    imported = sys.modules.get("scripts")
    if imported is not None:
        folders = [Path(folder).resolve().parent for folder in getattr(imported, "__path__", [])]
        for folder in folders:
            if (folder / DOOR).is_file():
                return folder
        place = getattr(imported, "__file__", None) or ", ".join(map(str, folders)) or "no file"
        raise ImportError(
            f"weakhisto must be imported before any other package called `scripts`, got one from {place}; import "
            "weakhisto first, or rename the other package."
        )
    root = next((folder for folder in PLACES if (folder / DOOR).is_file()), None)
    if root is None:
        raise ImportError(
            f"weakhisto must find its bundle in {' or '.join(map(str, PLACES))}, got neither; reinstall weakhisto."
        )
    sys.path.insert(0, str(root))
    import scripts  # noqa: F401  # claims the name from now on

    return root


def bundle_version(root: Path) -> str:
    """The version, which is defined only in the bundle's ``configs/metadata.json``."""
    return json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]
