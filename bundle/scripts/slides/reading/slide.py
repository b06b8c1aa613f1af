"""Read slides at a chosen resolution."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import BundleError
from .backends import open_slide
from .description import BACKENDS, PLAUSIBLE_MPP, require_backends

logger = logging.getLogger(__name__)

MPP_TOLERANCE = 0.02  # a level this close to the requested resolution is used without resampling
BLOCK_PX = 512  # side of the blocks to read, in pixels of the level


class Slide:
    """A slide file: its levels and their pixels.

    Args:
        path: the file; for DICOM any file of the series.
        mpp: micrometres per pixel of level 0, (y, x) or one for both, used if the file does not state it.
        backends: readers in the order to prefer them, as a sequence or separated by commas.
        overrule_mpp: whether ``mpp`` is used even if the file states another.
        mpp_from: where ``mpp`` is from: ``"argument"`` or ``"table"``.

    Raises:
        FileNotFoundError: if the file does not exist.
        BundleError: if no reader can open it, it is too large (see ``SlideImage.require_size``), or its resolution is
            unknown.

    Attributes:
        image: its description.
        mpp: micrometres per pixel of level 0, (y, x).
        mpp_source: ``"file"`` or ``mpp_from``.
    """

    def __init__(
        self,
        path: str | Path,
        mpp: float | Sequence[float] | None = None,
        backends: str | Sequence[str] = BACKENDS,
        overrule_mpp: bool = False,
        mpp_from: str = "argument",
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{path} must be a slide file; it does not exist.")
        self.image, self._read = open_slide(self.path, require_backends(backends))
        self.mpp, self.mpp_source = self._resolution(mpp, overrule_mpp, mpp_from)
        if self.mpp_source != "file":
            self.image = replace(self.image, mpp=self.mpp, mpp_source=mpp_from)
        if self.image.assumption:
            logger.warning(f"{self.path.name}: {self.image.assumption}.")

    @property
    def backend(self) -> str:
        """Name of the reader."""
        return self.image.backend

    @property
    def level_sizes(self) -> Sequence[tuple[int, int]]:
        """Height and width of each level in pixels."""
        return self.image.level_sizes

    @property
    def level_scales(self) -> Sequence[tuple[float, float]]:
        """Pixels of level 0 per pixel of each level, (y, x)."""
        return self.image.level_scales

    def _resolution(
        self, mpp: float | Sequence[float] | None, overrule: bool, mpp_from: str
    ) -> tuple[tuple[float, float], str]:
        """Micrometres per pixel of level 0, (y, x), and their source."""
        given = None if mpp is None else tuple(float(value) for value in np.broadcast_to(mpp, 2))
        stated = self.image.mpp
        if given is not None and not all(PLAUSIBLE_MPP[0] <= side <= PLAUSIBLE_MPP[1] for side in given):
            raise BundleError(
                f"{self.path}: `mpp` must state between {PLAUSIBLE_MPP[0]} and {PLAUSIBLE_MPP[1]} micrometres "
                f"per pixel, got {given}; set it to a value in that range."
            )
        if stated is not None and not (overrule and given is not None):
            if given is not None and not np.allclose(stated, given, rtol=MPP_TOLERANCE):
                logger.warning(
                    f"{self.path.name} states {stated[1]:.4g} um per pixel: `mpp` {mpp} is ignored. If the file is "
                    "wrong, add --overrule-mpp."
                )
            return stated, "file"
        if given is None:
            raise BundleError(
                f"{self.path} must state its micrometres per pixel, got none; pass them with --mpp (usually about 0.5 "
                "for a 20x scan, 0.25 for 40x)."
            )
        return given, mpp_from

    def read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a region, given in pixels of ``level``: (height, width, 3) uint8, the background outside the slide.

        Raises:
            BundleError: if the file is damaged there; the message has the slide and the position.
        """
        try:
            return self._read(level, top, left, height, width)
        except Exception as error:  # readers raise many types of error for such files
            raise BundleError(
                f"{self.path} must be readable; its level {level} is damaged at row {top}, column {left}: {error}"
            ) from error


class SlideView:
    """A slide as an image at a requested resolution.

    The next finer level is resampled by area averaging. If the requested resolution is within 2 % of an integer
    multiple of the level's, that multiple is used. Pixels are read in blocks of a fixed grid, so that each pixel has
    the same value in every read.

    Args:
        slide: the slide.
        mpp: requested micrometres per pixel.
        region: top, left, height and width of a part of the slide in pixels of level 0; ``None`` for the whole slide.

    Attributes:
        shape: height and width in pixels; a remainder of less than half a pixel at the slide's edge is dropped.
        scale: pixels of level 0 per pixel, (y, x).
        mpp: actual micrometres per pixel, (y, x).
        origin: the top left corner, (y, x), in pixels of level 0.
        block: height and width of the blocks in pixels.
    """

    def __init__(self, slide: Slide, mpp: float, region: Sequence[int] | None = None) -> None:
        if not mpp > 0:
            raise BundleError(f"`mpp` must be a positive number of micrometres, got {mpp}.")
        self.slide = slide
        wanted = [mpp / side for side in slide.mpp]  # pixels of level 0 per pixel
        finest = [max(scale) for scale in slide.level_scales]
        finer = [index for index, scale in enumerate(finest) if scale <= min(wanted) * (1 + MPP_TOLERANCE)]
        self.level = max(finer, key=lambda index: finest[index], default=0)
        down = slide.level_scales[self.level]
        self.ratio = tuple(_whole_if_near(ratio / step) for ratio, step in zip(wanted, down, strict=True))
        if min(self.ratio) < 1 - MPP_TOLERANCE:
            logger.warning(
                f"{slide.path.name} has {slide.mpp[1]:.4g} um per pixel, coarser than {mpp}: it is upsampled."
            )
        self.scale = tuple(ratio * step for ratio, step in zip(self.ratio, down, strict=True))
        self.mpp = tuple(step * side for step, side in zip(self.scale, slide.mpp, strict=True))
        top, left, height, width = self._pixels(region)
        self._corner = (top, left)
        self.origin = (top * self.scale[0], left * self.scale[1])
        self.shape = (height, width)
        self.block = tuple(max(1, round(BLOCK_PX / ratio)) for ratio in self.ratio)

    def _pixels(self, region: Sequence[int] | None) -> tuple[int, int, int, int]:
        """Convert a region to top, left, height and width in pixels of this view, at least one pixel."""
        full = self.slide.level_sizes[0]
        ends = [max(1, math.floor(side / scale + 0.5)) for side, scale in zip(full, self.scale, strict=True)]
        if region is None:
            return 0, 0, ends[0], ends[1]
        top, left, height, width = region
        if not (0 <= top < full[0] and 0 <= left < full[1] and height > 0 and width > 0):
            raise BundleError(f"`region` must be top, left, height, width within {full} pixels, got {list(region)}.")
        corner = [
            min(int(start / scale), end - 1) for start, scale, end in zip((top, left), self.scale, ends, strict=True)
        ]
        sizes = zip((top + height, left + width), self.scale, ends, corner, strict=True)
        return *corner, *[min(end, max(low + 1, math.ceil(stop / scale))) - low for stop, scale, end, low in sizes]

    def read_block(self, row: int, column: int) -> np.ndarray:
        """Read block (row, column) of the grid: (h, w, 3) uint8, cropped at the view's bottom and right edge."""
        top, left = row * self.block[0], column * self.block[1]
        height, width = min(self.block[0], self.shape[0] - top), min(self.block[1], self.shape[1] - left)
        top, left = top + self._corner[0], left + self._corner[1]
        box = [
            left * self.ratio[1],
            top * self.ratio[0],
            (left + width) * self.ratio[1],
            (top + height) * self.ratio[0],
        ]
        first_x, first_y, last_x, last_y = map(math.floor, box[:2] + [math.ceil(value) for value in box[2:]])
        end_y, end_x = (
            min(last, size) for last, size in zip((last_y, last_x), self.slide.level_sizes[self.level], strict=True)
        )
        pixels = self.slide.read(self.level, first_y, first_x, end_y - first_y, end_x - first_x)
        if (end_y, end_x) != (last_y, last_x):  # replicate the slide's last pixels to the view's edge
            pixels = np.pad(pixels, ((0, last_y - end_y), (0, last_x - end_x), (0, 0)), mode="edge")
        if self.ratio == (1.0, 1.0):
            return pixels
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        if all(ratio.is_integer() for ratio in self.ratio):
            return np.asarray(picture.reduce((int(self.ratio[1]), int(self.ratio[0]))))
        box = [box[0] - first_x, box[1] - first_y, box[2] - first_x, box[3] - first_y]
        means = Image.Resampling.BOX if min(self.ratio) >= 1 else Image.Resampling.BILINEAR
        return np.asarray(picture.resize((width, height), means, box=box))

    def read(self) -> np.ndarray:
        """Read the whole view, (H, W, 3) uint8; for small views."""
        image = np.empty((*self.shape, 3), dtype=np.uint8)
        for row in range(math.ceil(self.shape[0] / self.block[0])):
            for column in range(math.ceil(self.shape[1] / self.block[1])):
                block = self.read_block(row, column)
                top, left = row * self.block[0], column * self.block[1]
                image[top : top + block.shape[0], left : left + block.shape[1]] = block
        return image


def _whole_if_near(ratio: float) -> float:
    """Round ``ratio`` to the nearest whole number if it is within 2 % of it."""
    nearest = max(1, round(ratio))
    return float(nearest) if abs(ratio / nearest - 1) <= MPP_TOLERANCE else ratio


def thumbnail_view(slide: Slide, mpp: float, largest_px: int, region: Sequence[int] | None = None) -> SlideView:
    """A view of a slide at ``mpp``, or coarser if a side would exceed ``largest_px`` pixels.

    Args:
        slide, mpp, region: as for ``SlideView``.
        largest_px: maximum longer side in pixels.
    """
    size = slide.level_sizes[0] if region is None else region[2:]
    return SlideView(
        slide, max(mpp, *(side * step / largest_px for side, step in zip(size, slide.mpp, strict=True))), region
    )
