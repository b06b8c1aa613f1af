"""Find slide files: in folders with their subfolders, by patterns, in lists and tables."""

import glob
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import BundleError
from .slide_file import SlideFile, slide_name
from .slide_tables import TABLES, read_slide_table
from .tiff_images import describe_tiff

logger = logging.getLogger(__name__)

TIFFS = (".tif", ".tiff", ".btf", ".qptiff")
SUFFIXES = (".svs", *TIFFS, ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".svslide", ".bif", ".czi")
SLIDE_PX = 4000  # a side that patches do not have
PICTURES = re.compile(r"(^|[ _.-])(thumb(nail)?|macro|label|overview|preview)$", re.IGNORECASE)  # beside slides
RESULTS = ("record.json", "classes.ome.tif")  # mark a folder of results
NAMED = 10  # skipped files to name


@dataclass(frozen=True)
class FolderContent:
    """What a folder and its subfolders hold.

    Args:
        slides: the slides, sorted.
        skipped: what was left out, by reason.
    """

    slides: list[Path]
    skipped: dict[str, list[Path]]


def is_slide(path: str | Path) -> bool:
    """Whether a file is a slide: in a scanner's format, or a TIFF that is tiled, has several levels or a side of
    at least ``SLIDE_PX``.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in TIFFS:
        return suffix in (*SUFFIXES, ".dcm")
    try:
        tiff = describe_tiff(Path(path))
        tiff.close()
        return len(tiff.levels) > 1 or tiff.levels[0].page.is_tiled or max(tiff.levels[0].shape) >= SLIDE_PX
    except Exception:  # damaged or not RGB: it is read, and rejected, as a patch
        return False


def holds_slides(source: str | Path) -> bool:
    """Whether a file is a slide, a folder or a pattern has one, or a file lists some.

    Raises:
        FileNotFoundError: if there is no such file or folder.
    """
    path = Path(source)
    if path.is_file():
        return path.suffix.lower() in TABLES or is_slide(path)
    if path.is_dir():
        return any(map(is_slide, search(path).slides))
    found = [slide.path for entry in entries_of(source) for slide in _listed(entry)]
    if not any(map(Path.exists, found)):
        raise FileNotFoundError(f"{source} must be an image, a slide or a folder of either; it does not exist.")
    return any(map(is_slide, found))


def entries_of(slides: str | Path | Sequence[str | Path]) -> list[str]:
    """The paths and patterns in ``slides``: one, several, or several separated by commas."""
    if not isinstance(slides, (str, Path)):
        return [entry for one in slides for entry in entries_of(one)]
    text = str(slides)
    return [text] if Path(text).exists() else [part.strip() for part in text.split(",") if part.strip()]


def is_pattern(entry: str) -> bool:
    """Whether an entry has wildcards, and is no file whose name looks so."""
    return glob.has_magic(entry) and not Path(entry).exists()


def find_slides(slides: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files of ``list_slides``."""
    return [slide.path for slide in list_slides(slides)]


def list_slides(slides: str | Path | Sequence[str | Path]) -> list[SlideFile]:
    """List slide files with the names of their results, and log what is skipped.

    Slides in a folder are files with a slide suffix, there or in subfolders, and folders of DICOM files, each
    represented by its largest file. Hidden files, thumbnails and the results of earlier runs are left out. Names keep
    the subfolder; of files given one by one, those with equal names get their folder's name too.

    Args:
        slides: files, folders, patterns such as ``"*.svs"``, or lists of slides (see ``read_slide_table``); one or
            several, as a sequence or separated by commas.

    Raises:
        FileNotFoundError: if there are none.
        BundleError: if two slides of one folder, and so their results, have the same name.
    """
    found = [slide for entry in entries_of(slides) for slide in _listed(entry, logger.info)]
    if not found:
        raise FileNotFoundError(f"`slides` must be slide files or a folder of them, got {slides}; it has none.")
    return _with_unique_names(found)


def _listed(entry: str, tell: Callable[[str], None] = lambda message: None) -> Iterator[SlideFile]:
    """The slides of a path or a pattern."""
    path = Path(entry)
    if path.is_dir():
        yield from _in_folder(path, tell)
    elif path.suffix.lower() in TABLES:
        yield from read_slide_table(path)
    elif not is_pattern(entry):
        yield SlideFile(path, slide_name(path))
    else:
        base = Path(*_before_magic(path.parts))
        for match in sorted(map(Path, glob.glob(entry, recursive=True))):
            inside = _in_folder(match, tell) if match.is_dir() else [SlideFile(match, slide_name(match))]
            place = match.relative_to(base).parent if match.is_file() else match.relative_to(base)
            yield from (replace(slide, name=(place / slide.name).as_posix()) for slide in inside)


def _before_magic(parts: Sequence[str]) -> list[str]:
    """The folders of a pattern before its first wildcard."""
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return list(parts[:first])


def _in_folder(folder: Path, tell: Callable[[str], None]) -> Iterator[SlideFile]:
    content = search(folder)
    for reason, paths in content.skipped.items():
        names = ", ".join(str(path.relative_to(folder)) for path in paths[:NAMED])
        more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
        tell(f"{folder}: skipped {reason}: {names}{more}.")
    for path in content.slides:
        home = path.parent.parent if path.suffix.lower() == ".dcm" else path.parent
        place = home.relative_to(folder) if home.is_relative_to(folder) else Path()
        yield SlideFile(path, (place / slide_name(path)).as_posix())


def search(folder: Path) -> FolderContent:
    """Search a folder and its subfolders, links followed, for slides."""
    slides, skipped, seen, waiting = [], defaultdict(list), set(), [folder]
    while waiting:
        here = waiting.pop()
        if os.path.realpath(here) in seen:
            continue
        seen.add(os.path.realpath(here))
        entries = sorted(here.iterdir())
        if all((here / name).exists() for name in RESULTS):
            skipped["results of an earlier run"].append(here)
            continue
        if dicom := [path for path in entries if path.suffix.lower() == ".dcm" and path.name[0] != "."]:
            slides.append(max(dicom, key=lambda path: path.stat().st_size))
        for path in entries:
            hidden, suffix = path.name.startswith("."), path.suffix.lower()
            if path.is_dir():
                waiting += [] if hidden else [path]
            elif hidden:
                skipped["hidden files"] += [path] if suffix in SUFFIXES else []
            elif suffix in TIFFS and PICTURES.search(path.stem.removesuffix(".ome")):
                skipped["pictures of slides"].append(path)
            elif suffix in SUFFIXES:
                slides.append(path)
            elif (
                suffix != ".dcm" and not here.with_name(f"{here.name}.mrxs").exists()
            ):  # MRXS keeps its pixels in a folder
                skipped["files that are no slides by their suffix"].append(path)
    return FolderContent(sorted(slides), {reason: sorted(paths) for reason, paths in skipped.items() if paths})


def _with_unique_names(found: Sequence[SlideFile]) -> list[SlideFile]:
    """Add folders to the names of slides that would share one; a slide that is given twice stays once."""
    once = list({(slide.path.resolve(), slide.name): slide for slide in found}.values())
    alike = defaultdict(list)
    for slide in once:
        alike[slide.name].append(slide)
    unique = []
    for slide in once:
        others = [other.path.resolve().parent for other in alike[slide.name]]
        place = Path() if len(others) == 1 else slide.path.resolve().parent.relative_to(os.path.commonpath(others))
        unique.append(replace(slide, name=(place / slide.name).as_posix()))
    names = Counter(slide.name for slide in unique)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise BundleError(
            f"`slides` must have unique names, ignoring suffixes, got {twice[:5]} twice; rename them, or give names "
            "in a table."
        )
    inside = [name for name in names if any(str(parent) in names for parent in Path(name).parents)]
    if inside:
        raise BundleError(
            f"`slides` must not have the name of a folder with slides, got {inside[:5]} inside one; rename the slide, "
            "or give names in a table."
        )
    return unique
