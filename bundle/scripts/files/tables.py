"""Read tables as spreadsheets and other programs write them: with commas, semicolons or tabs, in UTF-8 or UTF-16."""

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import BundleError

SEPARATORS = ",;\t|"
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx and .ods are archives, .xls has a header of its own

Row = tuple[int, dict[str, str]]


def read_table(path: str | Path, columns: Sequence[str], optional: Sequence[str] = ()) -> list[Row]:
    """Read the rows of a table that has a header; other columns and empty rows are skipped.

    Column names match whatever their case, their order and the blanks around them.

    Args:
        path: the file.
        columns: columns that the table must have.
        optional: columns that it may have.

    Returns:
        For each row its number, as a spreadsheet shows it, and its cells by the names of ``columns`` and ``optional``,
        without the blanks around them.

    Raises:
        FileNotFoundError: if the file does not exist.
        BundleError: if it is no table, lacks a column or has it twice, or a row has too many or too few cells.
    """
    rows = _read_rows(Path(path), columns)
    header = [_folded(cell) for cell in rows[0]] if rows else []
    found = [name for name in (*columns, *optional) if _folded(name) in header]
    missing = [name for name in columns if name not in found]
    if missing:
        raise BundleError(
            f"{path} must have the columns {list(columns)}, but {missing} are missing; add them in its first row."
        )
    twice = [name for name in found if header.count(_folded(name)) > 1]
    if twice:
        raise BundleError(f"{path} must have each column once, but has {twice} more than once; remove the duplicates.")
    position = {name: header.index(_folded(name)) for name in found}
    table = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(row):
            continue
        if any(row[len(header) :]) or len(row) <= max(position.values()):
            raise BundleError(
                f"{path}: row {number} must have {len(header)} cells like the header, got {row}; correct that row."
            )
        table.append((number, {name: row[index] for name, index in position.items()}))
    return table


def parse_number(cell: str) -> float:
    """The number in a cell; a comma is a decimal comma.

    Raises:
        ValueError: if it is no number.
    """
    return float(cell.replace(",", "."))


def _read_rows(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """All rows of a table, header first, each cell without the blanks around it."""
    text, separators = _read_text(path), SEPARATORS
    stated = re.match(r"sep=([,;\t|])\r?\n", text, re.IGNORECASE)  # a line of Excel's own, which it does not show
    if stated:
        text, separators = text[stated.end() :], stated[1]
    wanted = {_folded(name) for name in columns}

    def rows(separator: str, strict: bool) -> Iterator[list[str]]:
        return csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=strict)

    def fit(separator: str) -> tuple[int, int]:
        header = next(rows(separator, strict=False), [])
        return len(wanted & set(map(_folded, header))), len(header)

    try:
        return [[cell.strip() for cell in row] for row in rows(max(separators, key=fit), strict=True)]
    except csv.Error as error:
        raise BundleError(
            f"{path} must be a CSV table, but cannot be read: {error}; save it as 'CSV UTF-8'."
        ) from error


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a table, but it does not exist; check the path.")
    content = path.read_bytes()
    utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if utf_16 else "utf-8-sig")
        fault = "it has zero bytes" if "\0" in text else None
    except UnicodeDecodeError as error:
        fault = str(error)
    if fault is not None:
        fault = "it is a workbook" if content.startswith(WORKBOOKS) else fault
        raise BundleError(f"{path} must be a CSV table in UTF-8 or UTF-16, but {fault}; save it as 'CSV UTF-8'.")
    return text.removeprefix("\ufeff")  # some programs write two marks


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()
