"""Lists of slides in a file: paths, one a line, or a table with pixel sizes and names."""

from collections import Counter
from pathlib import Path, PurePosixPath, PureWindowsPath

from ...errors import BundleError
from ...files.tables import has_columns, read_table, read_text
from .pixel_size import number
from .slide_file import SlideFile, slide_name

TABLES = (".csv", ".tsv", ".txt")
COLUMNS = ("slide", "mpp", "name")


def read_slide_table(path: Path) -> list[SlideFile]:
    """Read a list of slides.

    Args:
        path: a text file with a path in each line, or a table (see ``files.tables``) with the column ``slide``, and
            ``mpp`` or ``name`` if wanted. Paths start at the file's folder; empty cells say nothing.

    Raises:
        FileNotFoundError: if the file does not exist.
        BundleError: if a row is not as it must be; the message has the row.
    """
    if path.suffix.lower() != ".txt" and has_columns(path, COLUMNS) or has_columns(path, COLUMNS[:1]):
        rows = read_table(path, COLUMNS[:1], COLUMNS[1:], others=False)
    else:
        lines = enumerate(read_text(path).splitlines(), start=1)
        rows = [(row, {"slide": line}) for row, text in lines if (line := text.strip().strip('"'))]
    found = [_slide(path, row, cells) for row, cells in rows if not cells["slide"].startswith("#")]
    twice = [str(slide) for slide, count in Counter(slide.path for slide in found).items() if count > 1]
    if twice:
        raise BundleError(f"{path} must list each slide once, got {twice[:3]} twice; remove a row.")
    return found


def _slide(path: Path, row: int, cells: dict[str, str]) -> SlideFile:
    if not cells.get("slide"):
        raise BundleError(
            f"{path} must name a slide in row {row}, got none; fill the column `slide`, or remove the row."
        )
    slide = path.parent / Path(cells["slide"]).expanduser()
    mpp = number(cells["mpp"]) if cells.get("mpp") else None
    if cells.get("mpp") and mpp is None:
        raise BundleError(
            f"{path} must have micrometres per pixel in row {row}, such as 0.5, got {cells['mpp']!r}; fix or empty it."
        )
    name = cells.get("name") or slide_name(slide)
    parts = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
    if (
        PureWindowsPath(name).is_absolute()
        or PurePosixPath(name).is_absolute()
        or any(part[0] == "." for part in parts)
    ):
        raise BundleError(
            f"{path} must have a name without leading dots and slashes in row {row}, got {name!r}; use for instance "
            "case1/a."
        )
    return SlideFile(slide, name, mpp)
