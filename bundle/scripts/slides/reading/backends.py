"""Open a slide with the backend that sees most of it."""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import WSIReader

from ...errors import BundleError
from .colours import on_background
from .description import WHITE, ReadRegion, Size, SlideImage, is_level, level_scale
from .pixel_size import openslide_pixel_size
from .tiff_images import TiffImage, describe_tiff
from .tiff_levels import LARGEST_UNIT_PX

PATCHES, PATCH_PX = 4, 16  # patches along each side, and their side on the coarser level, to compare levels
OTHER_COLOUR = 30  # of 255: mean colours of a patch on two levels of a picture differ by less
GENERIC = "generic-tiff"  # OpenSlide's name for a TIFF of no scanner
Opened = tuple[SlideImage, ReadRegion]


def open_slide(path: Path, backends: Sequence[str]) -> Opened:
    """Open a slide: its description, and a function that reads its regions.

    OpenSlide knows scanners' formats best and is taken for them. Of other files, the backend that sees most levels
    is taken; of equals, one that need not decode large tiles again for each block, then the first.

    Args:
        path: the slide.
        backends: names of backends in the order to try them.

    Raises:
        BundleError: if none can open it; the message has each one's reason.
    """
    found: list[Opened] = []
    reasons = []
    for backend in backends:
        try:
            image, read = OPEN[backend](path)
            image.require_size()
            read(0, 0, 0, 1, 1)  # a truncated file often opens but fails here
        except Exception as error:  # readers raise many types of error for such files
            reasons.append(f"{backend}: {str(error).removesuffix('.')}")
            continue
        if backend == "openslide" and image.format != GENERIC:
            return image, read
        found.append(without_other_pictures(image, read))
    if not found:
        raise BundleError(
            f"{path} must be a readable slide; {'; '.join(reasons)}. Replace the file, or convert it, for instance to "
            "a pyramidal TIFF."
        )
    return max(found, key=lambda opened: _merit(opened[0]))


def _merit(image: SlideImage) -> tuple[int, bool]:
    """How well a backend reads a slide: the levels it sees, and whether it decodes each tile once, or in no time."""
    quick = all(math.prod(size) <= LARGEST_UNIT_PX for size in image.unit_sizes)
    return len(image.level_sizes), image.backend == "tifffile" or quick


def without_other_pictures(image: SlideImage, read: ReadRegion) -> Opened:
    """Leave out levels that show something else than the level before, such as a photograph of the same proportions."""
    kept = [0]
    for level in range(1, len(image.level_sizes)):
        if not _differ(image.level_sizes, read, kept[-1], level):
            kept.append(level)
    if len(kept) == len(image.level_sizes):
        return image, read
    sizes, scales = ([values[level] for level in kept] for values in (image.level_sizes, image.level_scales))
    return replace(image, level_sizes=sizes, level_scales=scales), lambda level, *box: read(kept[level], *box)


def _differ(sizes: Sequence[Size], read: ReadRegion, fine: int, coarse: int) -> bool:
    """Whether several of a grid of patches have other mean colours on two levels; a damaged level is kept for now."""
    differences = []
    for row, column in product(range(PATCHES), repeat=2):
        colours = []
        for level in (fine, coarse):
            side = [
                max(1, round(PATCH_PX * full / small)) for full, small in zip(sizes[level], sizes[coarse], strict=True)
            ]
            centre = [(at + 0.5) / PATCHES * length for at, length in zip((row, column), sizes[level], strict=True)]
            corner = [max(0, round(at - length / 2)) for at, length in zip(centre, side, strict=True)]
            height, width = (min(a, b - c) for a, b, c in zip(side, sizes[level], corner, strict=True))
            try:
                colours.append(read(level, *corner, height, width).mean(axis=(0, 1)))
            except Exception:  # of many types; reading the slide will say what is wrong
                return False
        differences.append(np.abs(colours[0] - colours[1]).max())
    return np.sort(differences)[-3] > OTHER_COLOUR


def open_tifffile(path: Path) -> Opened:
    """Open a TIFF with tifffile."""
    tiff = describe_tiff(path)
    return tiff.image, lambda level, *box: tiff.levels[level].read(*box)


def open_cucim(path: Path) -> Opened:
    """Open a TIFF with cuCIM, through MONAI; what it is, tifffile says."""
    reader, wsi = _monai("cucim", path)
    tiff = _plain_tiff(path)
    sizes = [tuple(map(int, reader.get_size(wsi, level))) for level in range(reader.get_level_count(wsi))]
    _require_same_image(tiff, sizes[0])
    kept = levels_of_image(sizes, tiff.associated)
    image = _as_read_by("cucim", tiff.image, [sizes[level] for level in kept])
    downsamples = [float(reader.get_downsample_ratio(wsi, level)) for level in kept]

    def read(level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        corner = (round(top * downsamples[level]), round(left * downsamples[level]))
        return reader.get_data(wsi, location=corner, size=(height, width), level=kept[level], mode="RGB")[0]

    return image, read


def open_openslide(path: Path) -> Opened:
    """Open with OpenSlide, through MONAI, cropped to its bounds."""
    reader, wsi = _monai("openslide", path)
    properties = dict(wsi.properties)
    sizes = [tuple(map(int, reader.get_size(wsi, level))) for level in range(reader.get_level_count(wsi))]
    generic = properties.get("openslide.vendor") == GENERIC
    tiff = _plain_tiff(path) if generic else None
    kept = levels_of_image(sizes, tiff.associated if tiff else frozenset())
    downsamples = [float(reader.get_downsample_ratio(wsi, level)) for level in kept]
    image = _openslide_image(properties, sizes, kept, downsamples)
    if tiff is not None:
        _require_same_image(tiff, sizes[0])
        image = replace(image, mpp=tiff.image.mpp, mpp_source=tiff.image.mpp_source)
    start = (image.bounds or (0, 0))[:2]

    def read(level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        corner = tuple(first + round(at * downsamples[level]) for first, at in zip(start, (top, left), strict=True))
        pixels, _ = reader.get_data(wsi, location=corner, size=(height, width), level=kept[level], mode="RGBA")
        pixels = on_background(pixels, image.background)
        return _within(pixels, top, left, image.level_sizes[level], image.background)

    return image, read


OPEN = {"openslide": open_openslide, "cucim": open_cucim, "tifffile": open_tifffile}


def _monai(backend: str, path: Path) -> tuple[WSIReader, Any]:
    if importlib.util.find_spec(backend) is None:
        raise ModuleNotFoundError(f"the package {backend} is not installed.")
    reader = WSIReader(backend=backend, channel_dim=-1)
    return reader, reader.read(str(path))


def _plain_tiff(path: Path) -> TiffImage:
    """The description of a TIFF that other readers than tifffile show rightly.

    Raises:
        BundleError: if they do not.
    """
    tiff = describe_tiff(path)
    tiff.close()
    if not tiff.plain:
        raise BundleError(f"it may not show {tiff.image.colour_model} colours rightly; use the backend tifffile.")
    return tiff


def _require_same_image(tiff: TiffImage, size: Size) -> None:
    """Refuse a reader that takes a file's first picture, such as a macro, for the slide."""
    if size != tiff.image.level_sizes[0]:
        raise BundleError(f"it sees a picture of {size[1]}x{size[0]} pixels, not the slide; use the backend tifffile.")


def _as_read_by(backend: str, image: SlideImage, sizes: Sequence[Size]) -> SlideImage:
    scales = [level_scale(sizes[0], size) for size in sizes]
    return replace(image, backend=backend, level_sizes=sizes, level_scales=scales, held_bytes=0)


def levels_of_image(sizes: Sequence[Size], associated: frozenset[Size]) -> list[int]:
    """Indices of the levels that are downsampled copies of the first one, not labels or photographs."""
    return [
        index for index, size in enumerate(sizes) if index == 0 or (is_level(size, sizes[0]) and size not in associated)
    ]


def _openslide_image(
    properties: Mapping[str, str], sizes: Sequence[Size], kept: Sequence[int], downsamples: Sequence[float]
) -> SlideImage:
    """Describe a slide from OpenSlide's properties."""
    bounds = bounds_of(properties, sizes[0])
    shown = [sizes[index] for index in kept]
    if bounds is not None:
        shown = [tuple(max(1, round(side / scale)) for side in bounds[2:]) for scale in downsamples]
    mpp, source = openslide_pixel_size(properties)
    units = [
        tuple(int(properties.get(f"openslide.level[{index}].tile-{side}", 1)) for side in ("height", "width"))
        for index in kept
    ]
    colour = properties.get("openslide.background-color", "").lstrip("#")
    background = tuple(bytes.fromhex(colour)) if len(colour) == 6 else WHITE
    return SlideImage(
        backend="openslide",
        format=properties.get("openslide.vendor", "unknown"),
        level_sizes=shown,
        level_scales=[level_scale(sizes[0], sizes[index]) if min(sizes[index]) else (1.0, 1.0) for index in kept],
        unit_sizes=units,
        mpp=mpp,
        mpp_source=source,
        bounds=bounds,
        background=background,
    )


def bounds_of(properties: Mapping[str, str], full: Size) -> tuple[int, int, int, int] | None:
    """Top, left, height and width of the scanned part within ``full``; ``None`` if it is all of it, or not stated."""
    try:
        left, top, width, height = (int(properties[f"openslide.bounds-{key}"]) for key in ("x", "y", "width", "height"))
    except (KeyError, ValueError):
        return None
    top, left, bottom, right = max(0, top), max(0, left), min(top + height, full[0]), min(left + width, full[1])
    if top >= bottom or left >= right or (top, left, bottom, right) == (0, 0, *full):
        return None
    return top, left, bottom - top, right - left


def _within(pixels: np.ndarray, top: int, left: int, size: Size, background: Sequence[int]) -> np.ndarray:
    """Paint what lies outside the level, as cropped to its bounds, in the background's colour."""
    height, width = pixels.shape[:2]
    rows, columns = (max(0, -top), size[0] - top), (max(0, -left), size[1] - left)
    if rows[0] or columns[0] or rows[1] < height or columns[1] < width:
        pixels = pixels.copy()
        for part in (
            pixels[: rows[0]],
            pixels[max(0, rows[1]) :],
            pixels[:, : columns[0]],
            pixels[:, max(0, columns[1]) :],
        ):
            part[:] = background
    return pixels
