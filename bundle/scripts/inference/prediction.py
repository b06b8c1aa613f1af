"""The prediction for an image or a slide."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.classes import Classes
from ..files.pictures import outlined, with_legend
from ..slides.outputs.areas import AreaCounter
from ..slides.outputs.results import clear_values
from ..slides.segmenting.tiles import nearest_pixels

PLOT_PX = (512, 2048)  # minimum and maximum length of a plot's longer side


@dataclass(frozen=True)
class Area:
    """The area of a class in an image.

    Args:
        pixels: number of pixels at the network's resolution.
        share: fraction of all tissue pixels, in [0, 1]; ``None`` if there are none.
        mm2: the area in mm²; ``None`` if the resolution is unknown.
    """

    pixels: int
    share: float | None
    mm2: float | None


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction for an image or a slide.

    Args:
        mask: (H, W) uint8 in the bundle's values, indices of ``classes.value_names``. Slides without a background class
            have one more value, ``classes.outside``, for pixels without tissue.
        entropy: entropy of the class probabilities, normalised by its maximum, (H, W) float32 in [0, 1]: 0 certain, 1
            undecided; 0 for pixels without tissue.
        probabilities: (K, H, W) float32 in [0, 1], in the order of ``classes.channel_names``; ``None`` for slides.
        classes: names, values and colours.
        areas: area of each tissue, by name.
        image: the segmented image, (H, W, 3) uint8; for a slide, a thumbnail.
        mpp: micrometres per pixel of the mask, (y, x). Images are assumed to have the resolution of the training
            patches; ``None`` if that is unknown.
        path: the file; ``None`` for arrays and PIL images.
    """

    mask: np.ndarray
    entropy: np.ndarray
    probabilities: np.ndarray | None
    classes: Classes
    areas: dict[str, Area]
    image: np.ndarray
    mpp: tuple[float, float] | None = None
    path: Path | None = None

    def plot(self) -> Image.Image:
        """Draw the image with tissue outlines and a legend of names and fractions; notebooks display it.

        >>> prediction.plot().size[0]
        512
        """
        height, width = self.image.shape[:2]
        scale = np.clip(max(height, width), *PLOT_PX) / max(height, width)
        size = [max(1, round(side * scale)) for side in (height, width)]
        picture = np.asarray(Image.fromarray(self.image).resize(size[::-1], Image.Resampling.LANCZOS))
        rows, columns = (
            nearest_pixels(np.arange(shown), shown, side) for shown, side in zip(size, self.mask.shape, strict=True)
        )
        values, palette = clear_values(self.mask[np.ix_(rows, columns)], self.classes)
        names = [f"{name} {area.share or 0:.0%}" for name, area in self.areas.items()]
        return with_legend(outlined(picture, values, palette), list(zip(names, palette[1:], strict=True)))


def counted(mask: np.ndarray) -> AreaCounter:
    """Count the pixels of ``mask``, (H, W) uint8, by value."""
    counter = AreaCounter()
    counter.add(mask, np.zeros_like(mask))
    return counter


def areas_of(counter: AreaCounter, classes: Classes, mpp: Sequence[float] | None) -> dict[str, Area]:
    """The area of each tissue, by name.

    Args:
        counter: counts of the mask's pixels.
        classes: the meaning of the mask values.
        mpp: micrometres per pixel, (y, x); ``None`` if unknown.
    """
    rows = counter.table(classes, mpp or (1.0, 1.0))[:-1]  # the last one is all tissue
    return {name: Area(pixels, share, mm2 if mpp else None) for name, _, pixels, mm2, share, _ in rows}
