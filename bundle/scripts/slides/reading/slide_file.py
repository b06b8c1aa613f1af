"""A slide's file, and the name of its results."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SlideFile:
    """A slide to segment.

    Args:
        path: the file.
        name: name of its results, with "/" between folders.
        mpp: micrometres per pixel of level 0 from a table, which rule over the file's; ``None`` if not given.
    """

    path: Path
    name: str
    mpp: float | None = None


def slide_name(path: Path) -> str:
    """The name of a slide's results: the file name without suffix, or for DICOM the folder name."""
    if path.suffix.lower() == ".dcm":
        return path.resolve().parent.name
    return path.stem.removesuffix(".ome")
