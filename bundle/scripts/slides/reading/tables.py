"""Lists of slides in a file: paths, one a line, or a table with pixel sizes and names."""

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from ...errors import BundleError
from .pixel_size import number
from .slide_file import SlideFile, slide_name

TABLES = (".csv", ".tsv", ".txt")
COLUMNS = ("slide", "mpp", "name")


def read_table(path: Path) -> list[SlideFile]:
    """Read a list of slides.

    Args:
        path: a text file with a path in each line, or a table whose header has ``slide``, and ``mpp`` or ``name`` if
            wanted, separated by commas, semicolons or tabs. Paths start at the file's folder; empty cells say nothing.

    Raises:
        FileNotFoundError: if the file does not exist.
        BundleError: if a row is not as it must be; the message has the row.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a list of slides; it does not exist.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} must be a list of slides in UTF-8: {error}; save it as CSV in UTF-8.") from error
    found = [
        _slide(path, row, cells)
        for row, cells in _rows(path, text)
        if any(cells.values()) and not cells.get("slide", "").startswith("#")
    ]
    twice = [str(slide) for slide, count in Counter(slide.path for slide in found).items() if count > 1]
    if twice:
        raise BundleError(f"{path} must list each slide once, got {twice[:3]} twice; remove a row.")
    return found


def _rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and cells, by column, of each row."""
    lines = text.splitlines()
    header = next((line for line in lines if line.strip()), "")
    separator = next((sign for sign in "\t;," if sign in header), ",")
    columns = [cell.strip().strip('"').lower() for cell in header.split(separator)]
    if "slide" not in columns:
        if separator in header and path.suffix.lower() != ".txt":
            raise BundleError(f"{path} must have the column `slide`, got {columns}; name the columns {list(COLUMNS)}.")
        yield from ((number, {"slide": line.strip().strip('"')}) for number, line in enumerate(lines, 1))
        return
    unknown = [column for column in columns if column not in (*COLUMNS, "")]
    if unknown:
        raise BundleError(f"{path} must have the columns {list(COLUMNS)}, got {unknown} too; remove or rename them.")
    if len(set(columns)) < len([column for column in columns if column]):
        raise BundleError(f"{path} must have each column once, got {columns}; remove one.")
    reader = csv.reader(lines, delimiter=separator)
    for cells in reader:
        if reader.line_num > lines.index(header) + 1:
            if len(cells) > len(columns) and any(cell.strip() for cell in cells[len(columns) :]):
                raise BundleError(
                    f"{path} must have {len(columns)} cells in row {reader.line_num}, got {len(cells)}; quote a cell "
                    f"that has {separator!r}."
                )
            yield (
                reader.line_num,
                {column: cell.strip() for column, cell in zip(columns, cells, strict=False) if column},
            )


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
