"""Read image-level labels from patch names, tables or datalists.

A label has a 1 for each class that the patch shows, a 0 for each that it does not, and NaN where that is unknown.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..files.foreign_files import read_json
from ..files.tables import parse_number, read_table

UNKNOWN = math.nan
Label = list[float]  # of 0, 1 and UNKNOWN; whole numbers are ints
WORDS = {"true": 1, "false": 0, "": UNKNOWN, "?": UNKNOWN, "na": UNKNOWN, "n/a": UNKNOWN, "nan": UNKNOWN}
GROUP_COLUMNS = ("patient", "slide", "group")


def parse_label(name: str, num_classes: int) -> list[int]:
    """Read the multi-hot label in a patch's name: ``"s1-[1 0 1 0].png"`` or ``"s1[1010].png"`` is ``[1, 0, 1, 0]``.

    Raises:
        BundleError: if the name has no label, or one of the wrong length.
    """
    match = re.findall(r"\[([01 ,]+)\]", name)
    label = [int(digit) for digit in re.findall("[01]", match[-1])] if match else []
    if len(label) != num_classes:
        example = " ".join(["1", *"0" * (num_classes - 1)])
        raise BundleError(
            f"{name!r} must have {num_classes} labels such as '[{example}]' in its name, got {label}; rename it, or "
            "provide the labels in a CSV or datalist."
        )
    return label


def read_label_file(path: str | Path, class_names: Sequence[str]) -> dict[str, Label]:
    """Read image-level labels from a MONAI datalist (``.json``) or a table (any other suffix).

    A datalist has a list ``training`` of ``{"image": ..., "label": [1, 0, null]}``. A table has a column ``image`` and
    a column of 0 and 1 for each class name (see ``read_table``); where a cell is empty, the label is unknown.

    Returns:
        The multi-hot label of each image, by the image's path as written in the file.

    Raises:
        BundleError: if the file has no such labels, or labels an image twice; with the row.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a label file, but it does not exist; check `label_file`.")
    labels = _datalist_labels(path) if _is_datalist(path) else _table_labels(path, class_names)
    for place, image, label in labels:
        if not isinstance(label, list) or not len(label) == len(class_names) or None in map(label_value, label):
            raise BundleError(
                f"{path}{place}: the label of {image!r} must be {len(class_names)} numbers, 0 or 1, one per class "
                f"{list(class_names)}, got {label}; write 0 or 1, or leave out what is unknown."
            )
    twice = [image for image, count in Counter(image for _, image, _ in labels).items() if count > 1]
    if twice:
        raise BundleError(
            f"{path} must label each image once, but lists {twice[:5]} more than once; remove the duplicates."
        )
    return {image: list(map(label_value, label)) for _, image, label in labels}


def label_value(value: Any) -> float | None:
    """0, 1 or ``UNKNOWN`` for a number or the text of a cell; ``None`` for anything else."""
    if isinstance(value, str):
        if value.lower() in WORDS:
            return WORDS[value.lower()]
        try:
            value = parse_number(value)
        except ValueError:
            return None
    if value is None:
        return UNKNOWN
    return int(value) if type(value) in (int, float) and value in (0, 1) else None


def label_text(label: Label) -> str:
    """A label as text, such as ``"1 0 ?"``."""
    return " ".join("?" if math.isnan(value) else str(value) for value in label)


def read_groups(path: str | Path) -> dict[str, str]:
    """The patient, slide or group of each image that a label table names; empty if it has no such column."""
    if _is_datalist(Path(path)):
        return {}
    rows = [cells for _, cells in read_table(path, ["image"], GROUP_COLUMNS)]
    column = next((name for name in GROUP_COLUMNS if rows and name in rows[0]), None)
    return {cells["image"]: cells[column] for cells in rows if column and cells[column]}


def _is_datalist(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _datalist_labels(path: Path) -> list[tuple[str, str, Any]]:
    """An empty place, ``image`` and ``label`` of each row of a MONAI datalist's list ``training``, unchecked."""
    try:
        rows = read_json(path)["training"]
        return [("", str(row["image"]), row["label"]) for row in rows]
    except (KeyError, TypeError) as error:
        raise BundleError(
            f'{path} must be JSON with a list "training" of {{"image": name, "label": [1, 0, …]}}, got {error!r}.'
        ) from error


def _table_labels(path: Path, class_names: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """The row, ``image`` and the cells of the class columns for each row of a table, unchecked."""
    return [
        (f", row {number}", cells["image"], [cells[name] for name in class_names])
        for number, cells in read_table(path, ["image", *class_names])
    ]
