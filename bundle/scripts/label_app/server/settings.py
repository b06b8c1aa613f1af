"""The bundle's classes, needed before a network is loaded or exists."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.classes import KEYS, Classes
from ...runs.old_names import read_configs


@dataclass(frozen=True)
class BundleSettings:
    """The classes of a bundle.

    Args:
        classes: names, values and colours.
        patch_size: height and width of training patches in pixels.
        model_mpp: their micrometres per pixel; ``None`` if unknown.
    """

    classes: Classes
    patch_size: Sequence[int]
    model_mpp: float | None

    @property
    def labels(self) -> dict[str, int]:
        """The mask value of each class that can be drawn."""
        return {self.classes.value_names[value]: value for value in self.classes.tissues}


def bundle_settings(bundle: Path) -> BundleSettings:
    """Read the classes from ``configs/inference.json``."""
    parser = read_configs(bundle / "configs" / "inference.json")
    classes = Classes(**{key: parser.get_parsed_content(key) for key in KEYS})
    return BundleSettings(classes, parser.get_parsed_content("patch_size"), parser.get_parsed_content("model_mpp"))
