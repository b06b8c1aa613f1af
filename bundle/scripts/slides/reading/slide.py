"""Read slides at a chosen resolution, through MONAI's WSIReader or tifffile, whichever can open the file."""

import importlib.util
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock

import numpy as np
from monai.data import WSIReader
from PIL import Image

from ...errors import BundleError
from ...files.foreign_files import limit_pixels, positive_setting
from . import tiff_levels

logger = logging.getLogger(__name__)

BACKENDS = ("openslide", "cucim", "tifffile")
PLAUSIBLE_MPP = (0.02, 20.0)  # a TIFF without a real resolution often states 72 or 96 dpi, about 300 um per pixel
LARGEST_SLIDE_GPX = 100.0
MPP_TOLERANCE = 0.02  # a level this close to the requested resolution is used without resampling
BLOCK_PX = 512  # side of the blocks to read, in pixels of the level
ReadRegion = Callable[[int, int, int, int, int], np.ndarray]


class Slide:
    """A slide file: its levels and their pixels.

    Args:
        path: the file; for DICOM any file of the series.
        mpp: micrometres per pixel of level 0, used if the file does not state it.
        backends: readers in the order to try them.

    Raises:
        FileNotFoundError: if the file does not exist.
        BundleError: if no reader can open it, it is too large (see ``require_size``), or its resolution is unknown.

    Attributes:
        level_sizes: height and width of each level in pixels.
        level_scales: pixels of level 0 per pixel of each level, (y, x).
        mpp: micrometres per pixel of level 0, (y, x).
        mpp_source: ``"file"`` or ``"argument"``.
    """

    def __init__(
        self, path: str | Path, mpp: float | Sequence[float] | None = None, backends: Sequence[str] = BACKENDS
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{path} must be a slide file; it does not exist.")
        unknown = [name for name in backends if name not in BACKENDS]
        if unknown or not backends:
            raise BundleError(f"`backends` must be some of {list(BACKENDS)}, got {list(backends)}.")
        open_with = {name: (_open_tiff if name == "tifffile" else _open_monai) for name in BACKENDS}
        reasons = []
        for self.backend in backends:
            try:
                opened = open_with[self.backend](self.path, self.backend)
                self.level_sizes, tile_sizes, file_mpp, self._read = opened
                require_size(self.level_sizes, tile_sizes)
                self._read(0, 0, 0, 1, 1)  # a truncated file often opens but fails here
                break
            except Exception as error:  # readers raise many types of error for such files
                reasons.append(f"{self.backend}: {error}")
        else:
            raise BundleError(
                f"{path} must be a readable slide; {'; '.join(map(str, reasons))}. Replace the file, or convert it, "
                "for instance to a pyramidal TIFF."
            )
        self.level_scales = [_level_scale(self.level_sizes[0], size) for size in self.level_sizes]
        self.mpp, self.mpp_source = self._resolution(file_mpp, mpp)

    def _resolution(
        self, file_mpp: tuple[float, float] | None, mpp: float | Sequence[float] | None
    ) -> tuple[tuple[float, float], str]:
        """Micrometres per pixel of level 0, (y, x), and their source."""
        given = None if mpp is None else tuple(float(value) for value in np.broadcast_to(mpp, 2))
        for source, value in (("the file", file_mpp), ("`mpp`", given)):
            if value is not None and not all(PLAUSIBLE_MPP[0] <= side <= PLAUSIBLE_MPP[1] for side in value):
                raise BundleError(
                    f"{self.path}: {source} must state between {PLAUSIBLE_MPP[0]} and {PLAUSIBLE_MPP[1]} micrometres "
                    f"per pixel, got {value}; set it to a value in that range."
                )
        if file_mpp is not None:
            if given is not None and not np.allclose(file_mpp, given, rtol=MPP_TOLERANCE):
                logger.warning(f"{self.path.name} states {file_mpp[1]:.4g} um per pixel: `mpp` {mpp} is ignored.")
            return file_mpp, "file"
        if given is None:
            raise BundleError(
                f"{self.path} must state its micrometres per pixel, got none; pass them with --mpp (usually about 0.5 "
                "for a 20x scan, 0.25 for 40x)."
            )
        return given, "argument"

    def read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a region, given in pixels of ``level``: (height, width, 3) uint8, white outside the slide.

        Raises:
            BundleError: if the file is damaged there; the message has the slide and the position.
        """
        try:
            return self._read(level, top, left, height, width)
        except Exception as error:  # as above
            raise BundleError(
                f"{self.path} must be readable; its level {level} is damaged at row {top}, column {left}: {error}"
            ) from error


def require_size(level_sizes: Sequence[Sequence[int]], tile_sizes: Sequence[Sequence[int]]) -> None:
    """Reject a slide whose header claims an implausible size, before memory is allocated for it.

    The environment variable ``LARGEST_SLIDE_GPX`` sets how many gigapixels a level may have; a tile, which is decoded
    as a whole, may have as many pixels as an image (see ``foreign_files``).

    Args:
        level_sizes, tile_sizes: heights and widths in pixels.

    Raises:
        BundleError: if a level or tile has more pixels, or none.
    """
    largest_level = positive_setting("LARGEST_SLIDE_GPX", LARGEST_SLIDE_GPX) * 1e9
    largest_tile = limit_pixels() * 1e6
    for kind, sizes, largest, setting in (
        ("levels", level_sizes, largest_level, "LARGEST_SLIDE_GPX"),
        ("tiles", tile_sizes, largest_tile, "LARGEST_IMAGE_MPX"),
    ):
        odd = [
            f"{width}x{height}" for height, width in sizes if not 1 <= min(height, width) <= height * width <= largest
        ]
        if odd:
            raise BundleError(
                f"its {kind} must have 1 to {largest:g} pixels, got {', '.join(odd[:3])}; if it is meant to be "
                f"that large, raise the environment variable {setting}."
            )


def _open_monai(path: Path, backend: str) -> tuple:
    """Open with MONAI's ``WSIReader``: level sizes, tile sizes, mpp and a function that reads regions."""
    if importlib.util.find_spec(backend) is None:
        raise ModuleNotFoundError(f"the package {backend} is not installed.")
    reader = WSIReader(backend=backend, channel_dim=-1)
    wsi = reader.read(str(path))
    sizes = [tuple(map(int, reader.get_size(wsi, level))) for level in range(reader.get_level_count(wsi))]
    downsamples = [float(reader.get_downsample_ratio(wsi, level)) for level in range(len(sizes))]
    mode = "RGBA" if backend == "openslide" else "RGB"
    sides = [
        [int(wsi.properties.get(f"openslide.level[{level}].tile-{side}", 1)) for side in ("height", "width")]
        for level in range(len(sizes) if backend == "openslide" else 0)
    ]

    def read(level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        corner = (round(top * downsamples[level]), round(left * downsamples[level]))
        pixels, _ = reader.get_data(wsi, location=corner, size=(height, width), level=level, mode=mode)
        return on_white(pixels) if mode == "RGBA" else pixels

    return sizes, sides, _stated_mpp(lambda: reader.get_mpp(wsi, 0)), read


def _open_tiff(path: Path, backend: str) -> tuple:
    """Open with tifffile; returns the same as ``_open_monai``."""
    tiff = tiff_levels.TiffFile(path)
    levels = tiff_levels.pyramid_levels(tiff)
    sizes = [(level.imagelength, level.imagewidth) for level in levels]
    lock, mpp = Lock(), WSIReader(backend="tifffile")

    def read(level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        return tiff_levels.read_region(levels[level], top, left, height, width, lock)

    tiles = [tiff_levels.tile_size(level) for level in levels]
    return sizes, tiles, _stated_mpp(lambda: mpp.get_mpp(tiff, 0)), read


def _level_scale(full: Sequence[int], size: Sequence[int]) -> tuple[float, float]:
    """Pixels of level 0 per pixel of a level, (y, x): a whole number if the sizes match it up to rounding."""
    ratios = [large / small for large, small in zip(full, size, strict=True)]
    whole = round(sum(ratios) / 2)
    fits = (
        all(small in (large // whole, -(-large // whole)) for large, small in zip(full, size, strict=True))
        if whole
        else False
    )
    return (float(whole), float(whole)) if fits else tuple(ratios)


def _stated_mpp(ask: Callable[[], tuple[float, float]]) -> tuple[float, float] | None:
    """The mpp that a file states, (y, x); ``None`` if missing, without a unit, or a print resolution."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # MONAI warns before it assumes a unit
            mpp = tuple(float(value) for value in ask())
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, Warning):
        return None
    return mpp if all(PLAUSIBLE_MPP[0] <= side <= PLAUSIBLE_MPP[1] for side in mpp) else None


def on_white(pixels: np.ndarray) -> np.ndarray:
    """Blend ``pixels``, (H, W, 4) uint8, onto white, (H, W, 3) uint8: unscanned areas are transparent."""
    alpha = pixels[..., 3:]
    if alpha.min(initial=255) == 255:
        return pixels[..., :3]
    return (255 - (255 - pixels[..., :3].astype(np.uint16)) * alpha // 255).astype(np.uint8)


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
