"""What the app must know of a bundle's classes before a network is in memory, or exists."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai.bundle import ConfigParser


@dataclass(frozen=True)
class BundleSettings:
    """The classes of a bundle.

    Args:
        class_names: in label order.
        value_names: the name of each mask value.
        palette: the colour of each mask value.
        classifier_values: the mask value of each class.
        background: whether value 0 is background.
        patch_size: height and width of training patches in pixels.
        model_mpp: their micrometres per pixel; ``None`` if unknown.
    """

    class_names: Sequence[str]
    value_names: Sequence[str]
    palette: Sequence[Sequence[int]]
    classifier_values: Sequence[int]
    background: bool
    patch_size: Sequence[int]
    model_mpp: float | None

    @property
    def labels(self) -> dict[str, int]:
        """The mask value of each class that is drawn."""
        return {name: value for value, name in enumerate(self.value_names) if value or not self.background}


def bundle_settings(bundle: Path) -> BundleSettings:
    """Read them from ``configs/inference.json``."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    names = BundleSettings.__dataclass_fields__
    return BundleSettings(**{name: parser.get_parsed_content(name) for name in names})
