"""Find the bundle, and make its package ``scripts`` importable."""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PLACES = (HERE / "bundle", HERE.parent / "bundle")  # installed inside this package; in a checkout beside it
DOOR = Path("scripts", "inference", "segmenter.py")


def make_importable() -> Path:
    """Put the bundle's folder on ``sys.path``, unless its package ``scripts``, or a copy of it, is imported already.

    Returns:
        The folder of the bundle whose code works.

    Raises:
        ImportError: if another package of the name ``scripts`` is imported.
    """
    imported = sys.modules.get("scripts")
    if imported is not None:
        folders = [Path(folder).resolve().parent for folder in getattr(imported, "__path__", [])]
        for folder in folders:
            if (folder / DOOR).is_file():
                return folder
        place = getattr(imported, "__file__", None) or ", ".join(map(str, folders)) or "no file"
        raise ImportError(
            f"weakhisto must find no other package called `scripts` imported, but there is one, from {place}; import "
            "weakhisto before it, or rename it."
        )
    root = next((folder for folder in PLACES if (folder / DOOR).is_file()), None)
    if root is None:
        raise ImportError(
            f"weakhisto must find its bundle in {' or '.join(map(str, PLACES))}, and does not; install it again."
        )
    sys.path.insert(0, str(root))
    import scripts  # noqa: F401  # from now on this name is taken

    return root


def bundle_version(root: Path) -> str:
    """The version, whose one source is the bundle's ``configs/metadata.json``."""
    return json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]
