"""The tissue classes of a data set: names, values in masks, channels of the networks, and colours."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BundleError, command_here
from ..files.foreign_files import read_json
from ..files.pictures import IGNORED, Palette
from .mask_values import inverse, lookup_table

KEYS = ("class_names", "classifier_values", "segmenter_values", "mask_values", "palette")
WHITE = [255, 255, 255]
BACKGROUND_NAMES = ("background", "bg", "glass")


@dataclass(frozen=True)
class Classes:
    """The K classes of a data set; ``len`` is K.

    Our mask values are 0, 1, ...: 0 is background if pixels may belong to no class, otherwise a class itself.

    Args:
        class_names: name of each class, in label order.
        classifier_values: mask value of each class, and thus of each channel of the classifier.
        segmenter_values: mask value of each channel of the segmentation network: the same values, in any order.
        mask_values: our value for each value, or range of values, in the data set's masks (see ``lookup_table``).
        palette: RGB colour, 0..255, of each of our values.
        ignore_value: the value, in the data set's masks, of pixels that leave losses and scores; ``None`` for none. The
            default is overruled by an entry in ``mask_values``.

    Raises:
        BundleError: for the first invalid argument, naming the key of the data set's overlay.
    """

    class_names: Sequence[str]
    classifier_values: Sequence[int]
    segmenter_values: Sequence[int]
    mask_values: Mapping[str, int]
    palette: Palette
    ignore_value: int | None = IGNORED

    def __post_init__(self) -> None:
        require_class_names(self.class_names)
        for key in ("classifier_values", "segmenter_values"):
            values = getattr(self, key)
            if not isinstance(values, (list, tuple)) or not all(type(value) is int and value >= 0 for value in values):
                raise BundleError(
                    f"`{key}` must be a list of whole numbers, 0 or more, got {values!r}; list one per class."
                )
        if sorted({0, *self.classifier_values}) != list(range(1 + max(self.classifier_values, default=0))) or not (
            len(set(self.classifier_values)) == len(self.classifier_values) == len(self.class_names)
        ):
            raise BundleError(
                f"`classifier_values` must assign a different mask value to each of the classes "
                f"{list(self.class_names)}, without gaps, got {list(self.classifier_values)}."
            )
        if sorted(self.segmenter_values) != sorted(self.classifier_values):
            raise BundleError(
                f"`segmenter_values` must be the values of `classifier_values`, {list(self.classifier_values)}, in any "
                f"order, got {list(self.segmenter_values)}; list each of them once."
            )
        if self.background:
            require_no_background_class(self.class_names)
        self.lookup_table()
        count, mapped = len(self.value_names), lookup_table(self.mask_values)
        beyond = sorted(set(mapped[mapped >= count].tolist()))
        if beyond:
            raise BundleError(
                f"`mask_values` must map to the classes' values, 0..{count - 1}, but also maps to {beyond}; map those "
                "to one of the classes' values."
            )
        colors = np.array(self.palette, dtype=object)
        if colors.shape != (count, 3) or not all(type(part) is int and 0 <= part <= 255 for part in colors.flat):
            raise BundleError(
                f"`palette` must be {count} RGB colours in 0..255, one per mask value, got {self.palette}; "
                "write each as [R, G, B]."
            )

    def __len__(self) -> int:
        return len(self.class_names)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Classes":
        """The classes described by the keys of a data set's overlay or of a merged config."""
        optional = {"ignore_value": config["ignore_value"]} if "ignore_value" in config else {}
        return cls(**{key: config[key] for key in KEYS}, **optional)

    @property
    def background(self) -> bool:
        """Whether value 0 is background rather than a class."""
        return 0 not in self.segmenter_values

    @cached_property
    def value_names(self) -> list[str]:
        """The name of each mask value; ``"background"`` for 0 if it is not a class."""
        names = dict(zip(self.classifier_values, self.class_names, strict=True))
        return [names.get(value, "background") for value in range(1 + max(names))]

    @property
    def channel_names(self) -> list[str]:
        """The name of each channel of the segmentation network."""
        return [self.value_names[value] for value in self.segmenter_values]

    @property
    def channel_order(self) -> list[int]:
        """For each channel of the segmentation network, the classifier's channel for the same class."""
        return [list(self.classifier_values).index(value) for value in self.segmenter_values]

    @property
    def tissues(self) -> list[int]:
        """The mask values that are classes."""
        return list(range(int(self.background), len(self.value_names)))

    @property
    def outside(self) -> int:
        """The value of a slide's class map outside the tissue mask: 0, or one extra value if there is no background."""
        return 0 if self.background else len(self.value_names)

    @property
    def colors(self) -> Palette:
        """The colour of each value of a slide's class map."""
        return [list(color) for color in self.palette] + ([] if self.background else [list(WHITE)])

    @property
    def legend(self) -> list[tuple[str, Sequence[int]]]:
        """The name and colour of each mask value."""
        return list(zip(self.value_names, self.palette, strict=True))

    def lookup_table(self) -> np.ndarray:
        """Our value for each value of the data set's masks; see ``mask_values.lookup_table``."""
        return lookup_table(self.mask_values, self.ignore_value)

    def published_values(self) -> np.ndarray:
        """The value in the data set's masks for each of our values, (V,) uint8.

        Raises:
            BundleError: if the data set has no value for one of ours.
        """
        written = inverse(self.mask_values)
        missing = [value for value in range(len(self.value_names)) if value not in written]
        if missing:
            raise BundleError(
                f"`mask_values` must have an entry for each of our values, got none for {missing}; add them."
            )
        return np.array([written[value] for value in range(len(self.value_names))], dtype=np.uint8)


def require_class_names(class_names: Any) -> None:
    """Reject class names that are not distinct strings, or that MONAI would interpret in a config.

    Raises:
        BundleError: if they are invalid.
    """
    if not isinstance(class_names, (list, tuple)) or not all(isinstance(name, str) and name for name in class_names):
        raise BundleError(
            f'`class_names` must be a list of non-empty names, got {class_names!r}; write it as ["tumor", "stroma"].'
        )
    if not class_names or len(set(class_names)) < len(class_names):
        raise BundleError(
            f"`class_names` must be one or more different names, got {list(class_names)}; rename or add classes."
        )
    special = [name for name in class_names if name[0] in "$@%" or "#" in name]
    if special:
        raise BundleError(
            f"`class_names` must not start with $, @ or %, which MONAI evaluates in a config, or contain #, got "
            f"{special}; rename them."
        )


def require_no_background_class(class_names: Sequence[str]) -> None:
    """Raise a ``BundleError`` if one of the classes is background, which has value 0 already and no label."""
    again = [name for name in class_names if name.strip().casefold() in BACKGROUND_NAMES]
    if again:
        rest = [name for name in class_names if name not in again]
        raise BundleError(
            f"`class_names` must not have {again}: value 0 is background already. Pass the others, "
            f"{','.join(rest) or 'the tissues'}, and labels without it; or, if it is a class with labels, "
            f'--class-names "{",".join([*rest, again[0]])}" --no-background.'
        )


def single_class_warning(classes: Classes) -> str | None:
    """What to tell about a single class with background: a network of one channel has but one answer to choose."""
    if not classes.background or len(classes) > 1:
        return None
    name = classes.class_names[0]
    return (
        f"{name!r} is the only class beside background: the protocol `published`, which leaves background out, cannot "
        "score it, and only white pixels are told from it. Describe the data with "
        f'--class-names "{name},rest" --no-background, and label patches [1 0], [0 1] or [1 1].'
    )


def require_cam_settings(threshold: float = 0.5, level_weights: Sequence[float] = (1.0,)) -> None:
    """Reject settings that cannot work with CAMs, before a classifier is trained.

    Args:
        threshold: class probability above which a class is present, in [0, 1].
        level_weights: weight of each CAM, 0 or more, not all 0.

    Raises:
        BundleError: for the first invalid argument.
    """
    if type(threshold) not in (int, float) or not 0 <= threshold <= 1:
        raise BundleError(
            f"`threshold` must be in [0, 1], got {threshold!r}; use a probability such as 0.5, not a percentage."
        )
    weights = level_weights if isinstance(level_weights, (list, tuple)) else [math.nan]
    if not all(type(weight) in (int, float) and 0 <= weight < math.inf for weight in weights) or not sum(weights) > 0:
        raise BundleError(
            f"`level_weights` must be a list of numbers, 0 or more and not all 0, got {level_weights!r}; use weights "
            "such as [0.2, 0.3, 0.5]."
        )


def read_overlay(path: str | Path) -> tuple[dict[str, Any], Classes]:
    """Read a data set's overlay as plain data: unlike in a bundle run, nothing in it is evaluated.

    Returns:
        The whole overlay, and its classes.

    Raises:
        FileNotFoundError: if there is no such file.
        BundleError: if it is not JSON, lacks a key, or has invalid classes; with its path.
    """
    overlay = read_json(path)
    missing = [key for key in KEYS if key not in overlay] if isinstance(overlay, dict) else list(KEYS)
    if missing:
        raise BundleError(
            f"{path} must describe a data set, a JSON object with {', '.join(KEYS)}; {missing} are missing: "
            f"pass a configs/dataset_….json, or create one with `{command_here('new-dataset')}`."
        )
    try:
        classes = Classes.of(overlay)
        require_cam_settings(**{key: overlay[key] for key in ("threshold", "level_weights") if key in overlay})
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from error
    return overlay, classes
