"""What a data set's overlay says: names, values and colours of classes, which must belong together, and use of CAMs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .data import value_names
from .foreign_files import read_json
from .mask_values import lookup_table

CLASS_KEYS = ("class_names", "classifier_values", "segmenter_values", "mask_values", "palette")
CAM_KEYS = ("threshold", "level_weights")


def require_class_names(class_names: Any) -> None:
    """Refuse class names that are no different texts, or that MONAI would take for something else in a config.

    Raises:
        ValueError: if they are.
    """
    if not isinstance(class_names, (list, tuple)) or not all(isinstance(name, str) and name for name in class_names):
        raise ValueError(f"`class_names` must be a list of names, none empty, got {class_names!r}; correct it.")
    if not class_names or len(set(class_names)) < len(class_names):
        raise ValueError(f"`class_names` must be one or more different names, got {list(class_names)}; correct them.")
    special = [name for name in class_names if name[0] in "$@%" or "#" in name]
    if special:
        raise ValueError(
            f"`class_names` must not begin with $, @ or %, which MONAI evaluates in a config, nor have a #, got "
            f"{special}; rename them."
        )


def require_classes(
    class_names: Sequence[str],
    classifier_values: Sequence[int],
    segmenter_values: Sequence[int],
    mask_values: Mapping[str, int],
    palette: Sequence[Sequence[int]],
    threshold: float = 0.5,
    level_weights: Sequence[float] = (1.0,),
) -> None:
    """Refuse classes whose names, values and colours do not belong together, and numbers that stage 1 would not need.

    Args:
        class_names: the K tissue classes in label order.
        classifier_values: mask value of each class.
        segmenter_values: mask value of each channel of the segmentation network: the same, in any order.
        mask_values: our value for each value in the masks (see ``lookup_table``).
        palette: RGB colour, 0..255, of each mask value.
        threshold: class probability above which a class is present, in [0, 1].
        level_weights: weight of each CAM.

    Raises:
        ValueError: for the first one that does not fit.
    """
    require_class_names(class_names)
    for key, values in (("classifier_values", classifier_values), ("segmenter_values", segmenter_values)):
        if not isinstance(values, (list, tuple)) or not all(type(value) is int and value >= 0 for value in values):
            raise ValueError(f"`{key}` must be a list of whole numbers, 0 or more, got {values!r}; correct it.")
    count = len(value_names(class_names, classifier_values))
    if sorted(segmenter_values) != sorted(classifier_values):
        raise ValueError(
            f"`segmenter_values` must be those of `classifier_values`, {list(classifier_values)}, in any order, got "
            f"{list(segmenter_values)}; correct them."
        )
    table = lookup_table(mask_values)
    beyond = sorted(set(table[table >= count].tolist()))
    if beyond:
        raise ValueError(
            f"`mask_values` must map to the classes' values, 0..{count - 1}, got also {beyond}; correct it."
        )
    colors = np.array(palette, dtype=object)
    if colors.shape != (count, 3) or not all(type(part) is int and 0 <= part <= 255 for part in colors.flat):
        raise ValueError(
            f"`palette` must be {count} RGB colours in 0..255, one for each mask value, got {palette}; correct it."
        )
    if type(threshold) not in (int, float) or not 0 <= threshold <= 1:
        raise ValueError(
            f"`threshold` must lie in [0, 1], got {threshold!r}; give a probability such as 0.5, not a percentage."
        )
    weights = level_weights if isinstance(level_weights, (list, tuple)) else [math.nan]
    if not all(type(weight) in (int, float) and 0 <= weight < math.inf for weight in weights) or not sum(weights) > 0:
        raise ValueError(
            f"`level_weights` must be a list of numbers, 0 or more and not all 0, got {level_weights!r}; correct it."
        )


def read_overlay(path: str | Path) -> dict[str, Any]:
    """Read a data set's overlay as data: nothing in it is evaluated, as a bundle run does with configs.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no JSON, lacks a key, or its classes do not fit (see ``require_classes``); with its path.
    """
    overlay = read_json(path)
    missing = [key for key in CLASS_KEYS if key not in overlay] if isinstance(overlay, dict) else list(CLASS_KEYS)
    if missing:
        raise ValueError(
            f"{path} must describe a data set, a JSON object with {', '.join(CLASS_KEYS)}; {missing} are missing: "
            "give configs/dataset_….json, or make one with `python -m scripts.new_dataset`."
        )
    try:
        require_classes(**{key: overlay[key] for key in (*CLASS_KEYS, *CAM_KEYS) if key in overlay})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return overlay
