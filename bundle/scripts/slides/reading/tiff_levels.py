"""Read regions of a TIFF's pyramid levels with tifffile, decoding only the tiles needed.

MONAI's tifffile backend decodes a whole level for each patch and treats every page as a level. Here the levels are
those of tifffile's first series, if they form a pyramid.
"""

import math
from collections.abc import Sequence
from threading import Lock

import numpy as np
from tifffile import TiffFile, TiffPage

from ...errors import BundleError

LARGEST_SHIFT = 0.02  # relative difference of a level's two downsampling ratios


def pyramid_levels(tiff: TiffFile) -> list[TiffPage]:
    """The pages of a slide's levels, finest first.

    Raises:
        BundleError: if the first image is not 8-bit RGB with interleaved colours.
    """
    levels = [level.keyframe for level in tiff.series[0].levels] if tiff.series else []
    if not levels or levels[0].samplesperpixel not in (3, 4) or levels[0].dtype != np.uint8:
        raise BundleError("it has no 8-bit RGB image.")
    if levels[0].planarconfig != 1:
        raise BundleError("its colours are in separate planes; save it with interleaved colours.")
    shapes = [(level.imagelength, level.imagewidth) for level in levels]
    return [level for level, shape in zip(levels, shapes, strict=True) if is_level(shape, shapes[0], level, levels[0])]


def is_level(shape: Sequence[int], first: Sequence[int], page: TiffPage, first_page: TiffPage) -> bool:
    """Whether a page is a downsampled copy: same colour format, same ratio for height and width (within 1 px)."""
    ratio = max(first[0] / shape[0], first[1] / shape[1])
    fits = all(
        abs(large / ratio - small) <= 1 + LARGEST_SHIFT * small for large, small in zip(first, shape, strict=True)
    )
    return fits and page.samplesperpixel == first_page.samplesperpixel and page.dtype == first_page.dtype


def tile_size(page: TiffPage) -> tuple[int, int]:
    """Height and width, in pixels, of the unit of decoding: a tile or a strip."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def read_region(page: TiffPage, top: int, left: int, height: int, width: int, lock: Lock) -> np.ndarray:
    """Read a region of a level, (height, width, 3) uint8, white outside the level.

    Args:
        page: the level.
        top, left, height, width: the region in pixels of the level.
        lock: guards the file position, so that threads can share the file.
    """
    region = np.full((height, width, 3), 255, dtype=np.uint8)
    tile_height, tile_width = tile_size(page)
    across = math.ceil(page.imagewidth / tile_width)
    rows = range(max(0, top // tile_height), math.ceil(min(top + height, page.imagelength) / tile_height))
    columns = range(max(0, left // tile_width), math.ceil(min(left + width, page.imagewidth) / tile_width))
    for row in rows:
        for column in columns:
            tile = _decode(page, row * across + column, lock)
            if tile is None:
                continue
            y, x = row * tile_height - top, column * tile_width - left
            tile = tile[: page.imagelength - row * tile_height, : page.imagewidth - column * tile_width, :3]
            tile = tile[max(0, -y) : height - y, max(0, -x) : width - x]
            region[max(0, y) : max(0, y) + tile.shape[0], max(0, x) : max(0, x) + tile.shape[1]] = tile
    return region


def _decode(page: TiffPage, index: int, lock: Lock) -> np.ndarray | None:
    """Decode a page's tile or strip, (h, w, 3 or 4) uint8; ``None`` if the file omits it."""
    with lock:
        handle = page.parent.filehandle
        handle.seek(page.dataoffsets[index])
        data = handle.read(page.databytecounts[index])
    if len(data) < page.databytecounts[index]:
        raise BundleError("the file ends before its pixels do.")
    if not data:
        return None
    tables = {}
    if page.compression in (6, 7, 34892, 33007):  # JPEG
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
    pixels = page.decode(data, index, **tables)[0]
    return None if pixels is None else pixels[0]
