"""Read image-level labels from patch names, tables or datalists."""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..files.foreign_files import read_json


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


def read_label_file(path: str | Path, class_names: Sequence[str]) -> dict[str, list[int]]:
    """Read image-level labels from a MONAI datalist (``.json``) or a table (``.csv``).

    A datalist has a list ``training`` of ``{"image": ..., "label": [1, 0, 1]}``. A table has a column ``image`` and a
    column of 0 and 1 for each class name.

    Returns:
        The multi-hot label of each image, by the image's path as written in the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a label file, but it does not exist; check `label_file`.")
    labels = _datalist_labels(path) if path.suffix.lower() == ".json" else _table_labels(path, class_names)
    for image, label in labels:
        if not isinstance(label, list) or [str(value) in ("0", "1") for value in label] != [True] * len(class_names):
            raise BundleError(
                f"{path}: the label of {image!r} must be {len(class_names)} numbers, 0 or 1, one per class "
                f"{list(class_names)}, got {label}."
            )
    twice = [image for image, count in Counter(image for image, _ in labels).items() if count > 1]
    if twice:
        raise BundleError(
            f"{path} must label each image once, but lists {twice[:5]} more than once; remove the duplicates."
        )
    return {image: [int(value) for value in label] for image, label in labels}


def _datalist_labels(path: Path) -> list[tuple[str, Any]]:
    """The ``label`` of each ``image`` in the list ``training`` of a MONAI datalist, unchecked."""
    try:
        rows = read_json(path)["training"]
        return [(str(row["image"]), row["label"]) for row in rows]
    except (KeyError, TypeError) as error:
        raise BundleError(
            f'{path} must be JSON with a list "training" of {{"image": name, "label": [1, 0, …]}}, got {error!r}.'
        ) from error


def _table_labels(path: Path, class_names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The cells of the class columns for each ``image`` of a CSV table, unchecked."""
    columns = ["image", *class_names]
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header, *rows = list(csv.reader(file, strict=True)) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BundleError(f"{path} must be a CSV table in UTF-8: {error}; save it in that format.") from error
    missing = sorted(set(columns) - set(header))
    if missing:
        raise BundleError(f"{path} must have the columns {columns}, but {missing} are missing; add them.")
    twice = [name for name in columns if header.count(name) > 1]
    if twice:
        raise BundleError(f"{path} must have each column once, but has {twice} more than once; remove the duplicates.")
    labels = []
    for number, row in enumerate(rows, start=2):
        if len(row) > len(header):
            raise BundleError(f"{path}: row {number} must have {len(header)} cells like the header, got {row}.")
        if row:
            cells = dict(zip_longest(header, row, fillvalue=""))
            labels.append((cells["image"], [cells[name].strip() for name in class_names]))
    return labels
