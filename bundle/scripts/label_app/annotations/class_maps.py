"""Class maps of patches, of images sent by a client, and of slides, with their position in the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...data.check import rgb_size
from ...files.foreign_files import open_image
from ...inference.prediction import Prediction
from ...inference.segmenter import Segmenter
from ...slides.reading.slide import MPP_TOLERANCE, Slide
from ...slides.segmenting.engine import SlideEngine
from ...slides.segmenting.strip_files import MapStrips


@dataclass(frozen=True)
class ClassMap:
    """Class map values with their position in the image.

    Args:
        values: class map values, (H, W) uint8.
        uncertainty: mean entropy over all pixels, normalised by its maximum to [0, 1].
        scale: pixels of the image (level 0) per pixel of the map, (y, x).
        origin: the map's top left corner, (y, x), in pixels of the image.
        size: height and width of the requested region in pixels of the image.
    """

    values: np.ndarray
    uncertainty: float
    scale: tuple[float, float]
    origin: tuple[float, float]
    size: tuple[int, int]

    def mask(self) -> np.ndarray:
        """Resample the values to the requested region's pixels, (height, width) uint8, by nearest neighbour."""
        rows, columns = (
            np.minimum(((np.arange(length) + 0.5) / step).astype(np.intp), side - 1)
            for length, step, side in zip(self.size, self.scale, self.values.shape, strict=True)
        )
        return self.values[np.ix_(rows, columns)]


def slide_map(engine: SlideEngine, slide: Slide, region: Sequence[int] | None) -> ClassMap:
    """Segment a slide, or a region of it, with the bundle's slide engine.

    Args:
        engine: the slide engine.
        slide: the slide.
        region: top, left, height and width in pixels of level 0; ``None`` for the whole slide.
    """
    plan = engine.plan(slide, region)
    strips = MapStrips(plan.grid, engine.segmenter.classes.outside)
    engine.compute(plan, strips)
    uncertainty = float(strips.entropy.mean(dtype=np.float64)) / 255
    size = slide.level_sizes[0] if region is None else region[2:]
    return ClassMap(strips.classes, uncertainty, plan.view.scale, plan.view.origin, tuple(size))


def patch_map(result: Prediction, region: Sequence[int] | None) -> ClassMap:
    """The class map of a patch, or of a region given as top, left, height and width in pixels."""
    top, left, height, width = region or (0, 0, *result.mask.shape)
    window = (slice(top, top + height), slice(left, left + width))
    uncertainty = float(result.entropy[window].mean())
    return ClassMap(result.mask[window], uncertainty, (1.0, 1.0), (top, left), (height, width))


def picture_map(model: Segmenter, path: str | Path, mpp: float | None, origin: tuple[int, int]) -> ClassMap:
    """The class map of an image that a client cropped from a slide, resampled to the network's resolution.

    Args:
        model: the network.
        path: the image, 8-bit RGB.
        mpp: its micrometres per pixel; ``None`` if the same as the network's.
        origin: its top left corner, (y, x), in pixels of the slide.
    """
    rgb_size(path)
    factor = 1.0 if mpp is None or model.model_mpp is None else model.model_mpp / mpp
    if abs(factor - 1) <= MPP_TOLERANCE:
        result = model.predict(path)
        return ClassMap(result.mask, float(result.entropy.mean()), (1.0, 1.0), origin, result.mask.shape)
    with open_image(path) as picture:
        width, height = (max(1, round(side / factor)) for side in picture.size)
        means = Image.Resampling.BOX if factor > 1 else Image.Resampling.BILINEAR
        size, pixels = picture.size[::-1], np.asarray(picture.resize((width, height), means))
    result = model.predict(pixels)
    scale = (size[0] / height, size[1] / width)
    return ClassMap(result.mask, float(result.entropy.mean()), scale, origin, size)
