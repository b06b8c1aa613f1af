"""What a network says of an image or a slide."""

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

PLOT_PX = (512, 2048)  # the longer side of a plot: at least, at most


@dataclass(frozen=True)
class Area:
    """How much of an image is of a class.

    Args:
        pixels: their number, at the resolution of the network.
        share: of the pixels of all tissues, in [0, 1]; ``None`` if there are none.
        mm2: the area in mm²; ``None`` if the resolution is unknown.
    """

    pixels: int
    share: float | None
    mm2: float | None


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says of an image or a slide.

    Args:
        mask: (H, W) uint8 in our values, indices of ``classes.value_names``; of a slide without a class of background
            one value more, ``classes.outside``, where there is no tissue.
        entropy: of the class probabilities, as a share of the largest possible, (H, W) float32 in [0, 1]: 0 sure, 1
            undecided; 0 where there is no tissue.
        probabilities: (K, H, W) float32 in [0, 1], in the order of ``classes.channel_names``; ``None`` for slides.
        classes: names, values and colours.
        areas: of each tissue, by name.
        image: what was segmented, (H, W, 3) uint8; of a slide a small picture.
        mpp: micrometres per pixel of the mask, (y, x). Images are taken at the resolution of the training patches;
            ``None`` if that is unknown.
        path: the file; ``None`` for arrays and pictures.
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
        """The image with its tissues outlined in their colours, above their names and shares; notebooks show it.

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
    """The pixels of ``mask``, (H, W) uint8, by value."""
    counter = AreaCounter()
    counter.add(mask, np.zeros_like(mask))
    return counter


def areas_of(counter: AreaCounter, classes: Classes, mpp: Sequence[float] | None) -> dict[str, Area]:
    """The area of each tissue, by name.

    Args:
        counter: of the mask's pixels.
        classes: what its values mean.
        mpp: micrometres per pixel, (y, x); ``None`` if unknown.
    """
    rows = counter.table(classes, mpp or (1.0, 1.0))[:-1]  # the last one is all tissue
    return {name: Area(pixels, share, mm2 if mpp else None) for name, _, pixels, mm2, share, _ in rows}
