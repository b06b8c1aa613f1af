"""Which files are slides."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tifffile import TiffFile

from ...errors import BundleError
from .tiff_levels import pyramid_levels

SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".svslide", ".bif", ".czi")


def is_slide(path: str | Path) -> bool:
    """Whether a file is a slide: of a scanner's format, or a TIFF that is tiled or has several levels."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".tif", ".tiff"):
        return suffix in (*SUFFIXES, ".dcm")
    try:
        with TiffFile(path) as tiff:
            levels = pyramid_levels(tiff)
            return len(levels) > 1 or levels[0].is_tiled
    except Exception:  # a damaged file, or one of other colours: read, and refused, as a patch
        return False


def holds_slides(source: str | Path) -> bool:
    """Whether a file is a slide, or a folder has one.

    Raises:
        FileNotFoundError: if there is no such file or folder.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source} must be an image, a slide or a folder of either; it does not exist.")
    return any(map(is_slide, _slides_in(source) if source.is_dir() else [source]))


def find_slides(slides: str | Path | Sequence[str | Path]) -> list[Path]:
    """The slide files of a folder, or those that are given, with a name of its own each.

    In a folder that is a file with a slide's suffix, or a sub-folder of DICOM files, of which the largest stands for
    the series.

    Raises:
        FileNotFoundError: if there are none.
        BundleError: if two slides have one name, as their results would have.
    """
    given = [slides] if isinstance(slides, (str, Path)) else list(slides)
    found: list[Path] = []
    for path in map(Path, given):
        found += _slides_in(path) if path.is_dir() else [path]
    if not found:
        raise FileNotFoundError(f"`slides` must be slide files or a folder of them, got {slides}; it holds none.")
    twice = [name for name, count in Counter(map(slide_name, found)).items() if count > 1]
    if twice:
        raise BundleError(f"`slides` must have names of their own, whatever their suffix; {twice[:5]} are there twice.")
    return found


def _slides_in(folder: Path) -> list[Path]:
    entries = sorted(folder.iterdir())
    series = [folder, *(entry for entry in entries if entry.is_dir())]
    dicom = [max(files, key=lambda path: path.stat().st_size) for part in series if (files := list(part.glob("*.dcm")))]
    return sorted([entry for entry in entries if entry.is_file() and entry.suffix.lower() in SUFFIXES] + dicom)


def slide_name(path: Path) -> str:
    """The name of a slide's results: the file's without its suffix, or for DICOM its folder's."""
    if path.suffix.lower() == ".dcm":
        return path.resolve().parent.name
    return path.stem.removesuffix(".ome")
