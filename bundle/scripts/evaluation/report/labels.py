"""How many images of a data set show each class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...data.classes import Classes
from ...data.items import labelled_images, split_items
from ...data.mask_values import load_mask
from ...files.foreign_files import open_image, read_json


def label_counts(dataset_dir: str | Path, classes: Classes, label_file: str | Path | None) -> dict[str, Any]:
    """Count the training patches labelled with each class, and the val and test images whose masks show it.

    Returns:
        ``columns``, the names of the parts that could be read; ``rows``, the name of each class with its counts, then
        ``"all"`` with the numbers of images; and ``note``, what ``prepare`` had to say of the labels, or ``None``.
    """
    counts: dict[str, Sequence[int]] = {}
    try:
        labels = [item["label"] for item in labelled_images(dataset_dir, classes.class_names, label_file)]
        counts["train"] = [*np.nansum(labels, axis=0).astype(int), len(labels)]  # unknown labels are NaN
    except (OSError, ValueError):  # the data were moved or changed since, or the patches have masks in place of labels
        pass
    for split in ("val", "test"):
        try:
            shown = _classes_in_masks(dataset_dir, split, classes)
        except (OSError, ValueError):
            continue
        if len(shown):
            counts[split] = [*shown.sum(axis=0), len(shown)]
    prepared = Path(dataset_dir) / "prepare.json"
    return {
        "note": read_json(prepared).get("note") if prepared.is_file() else None,
        "columns": list(counts),
        "rows": list(zip([*classes.class_names, "all"], zip(*counts.values(), strict=True), strict=False)),
    }


def _classes_in_masks(dataset_dir: str | Path, split: str, classes: Classes) -> np.ndarray:
    """Whether each mask of a split shows each class, (N, K) bool, in label order."""
    table, shown = classes.lookup_table(), []
    for item in split_items(dataset_dir, split):
        with open_image(item["image"]) as image:
            size = (image.height, image.width)
        shown.append(np.isin(classes.classifier_values, load_mask(item["label"], table, size)))
    return np.array(shown)
