"""Find slide files."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...errors import BundleError
from .tiff_images import describe_tiff

SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".svslide", ".bif", ".czi")

SLIDE_PX = 4000  # a side that patches do not have


def is_slide(path: str | Path) -> bool:
    """Whether a file is a slide: in a scanner's format, or a TIFF that is tiled, has several levels or
    a side of at least ``SLIDE_PX``."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".tif", ".tiff"):
        return suffix in (*SUFFIXES, ".dcm")
    try:
        tiff = describe_tiff(Path(path))
        tiff.close()
        return len(tiff.levels) > 1 or tiff.levels[0].page.is_tiled or max(tiff.levels[0].shape) >= SLIDE_PX
    except Exception:  # damaged or not RGB: it is read, and rejected, as a patch
        return False


def holds_slides(source: str | Path) -> bool:
    """Whether a file is a slide, or a folder contains one.

    Raises:
        FileNotFoundError: if the file or folder does not exist.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source} must be an image, a slide or a folder of either; it does not exist.")
    return any(map(is_slide, _slides_in(source) if source.is_dir() else [source]))


def find_slides(slides: str | Path | Sequence[str | Path]) -> list[Path]:
    """List slide files, given as paths or as a folder; their names must be unique.

    Slides in a folder are files with a slide suffix, and subfolders of DICOM files, each represented by its largest
    file.

    Raises:
        FileNotFoundError: if there are none.
        BundleError: if two slides, and so their results, have the same name.
    """
    given = [slides] if isinstance(slides, (str, Path)) else list(slides)
    found: list[Path] = []
    for path in map(Path, given):
        found += _slides_in(path) if path.is_dir() else [path]
    if not found:
        raise FileNotFoundError(f"`slides` must be slide files or a folder of them, got {slides}; it has none.")
    twice = [name for name, count in Counter(map(slide_name, found)).items() if count > 1]
    if twice:
        raise BundleError(f"`slides` must have unique names, ignoring suffixes, got {twice[:5]} twice; rename them.")
    return found


def _slides_in(folder: Path) -> list[Path]:
    entries = sorted(folder.iterdir())
    series = [folder, *(entry for entry in entries if entry.is_dir())]
    dicom = [max(files, key=lambda path: path.stat().st_size) for part in series if (files := list(part.glob("*.dcm")))]
    return sorted([entry for entry in entries if entry.is_file() and entry.suffix.lower() in SUFFIXES] + dicom)


def slide_name(path: Path) -> str:
    """The name of a slide's results: the file name without suffix, or for DICOM the folder name."""
    if path.suffix.lower() == ".dcm":
        return path.resolve().parent.name
    return path.stem.removesuffix(".ome")
