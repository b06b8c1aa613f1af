"""Read regions of a TIFF's pyramid levels with tifffile, decoding only what is needed, each large unit once.

MONAI's tifffile backend decodes a whole level for each patch and treats every page as a level. Here the levels are
those of the file's main image, whose colours may be interleaved or lie in planes or pages of their own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np
from tifffile import TiffFrame, TiffPage

from ...errors import BundleError
from .colours import JPEG, Colours
from .kept_pixels import KeptPixels

LARGEST_UNIT_PX = 1 << 20  # larger tiles are decoded once and kept
WIDEST_STRIP_PX = 1024  # wider strips too, since each belongs to several blocks


@dataclass(frozen=True)
class Plane:
    """One page, or one plane of a page with separate planes.

    Args:
        page: the page.
        index: the plane's position in the page.
    """

    page: TiffPage | TiffFrame
    index: int = 0


class TiffLevel:
    """A level of a TIFF: its planes, from which regions are read.

    Args:
        planes: one with interleaved colours, or several.
        colours: how the samples of all planes become RGB.
        path: the file.
        lock: guards the file's position, so that threads can share it.
    """

    def __init__(self, planes: Sequence[Plane], colours: Colours, path: Path, lock: Lock) -> None:
        self.planes, self.colours, self.path, self.lock = planes, colours, path, lock
        self.page: TiffPage = planes[0].page.keyframe
        self.shape = (self.page.imagelength, self.page.imagewidth)
        self.unit = unit_size(self.page)
        self.kept = KeptPixels(self.shape, self.unit, self._decode_rgb, colours.background) if self.is_kept else None

    @cached_property
    def is_mapped(self) -> bool:
        """Whether the file holds the samples as they are, so that parts of a unit can be read."""
        page = self.page
        return page.compression == 1 and page.predictor == 1 and page.fillorder == 1 and page.bitspersample == 8

    @property
    def is_kept(self) -> bool:
        """Whether units are decoded once and kept."""
        if self.is_mapped or min(self.shape) < 1:
            return False
        return math.prod(self.unit) > LARGEST_UNIT_PX or not self.page.is_tiled and self.unit[1] > WIDEST_STRIP_PX

    @property
    def held_bytes(self) -> int:
        """Memory that reading takes besides a few ordinary tiles."""
        return 0 if self.kept is None else self.kept.held_bytes

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a region of the level, (height, width, 3) uint8, with the background outside."""
        region = np.empty((height, width, 3), dtype=np.uint8)
        region[:] = self.colours.background
        first, last = max(0, top), min(top + height, self.shape[0])
        start, stop = max(0, left), min(left + width, self.shape[1])
        if first >= last or start >= stop:
            return region
        inside = region[first - top : last - top, start - left : stop - left]
        if self.kept is not None:
            inside[:] = self.kept.read(first, start, last, stop)
            return region
        for row in range(first // self.unit[0], math.ceil(last / self.unit[0])):
            for column in range(start // self.unit[1], math.ceil(stop / self.unit[1])):
                y, x = row * self.unit[0], column * self.unit[1]
                box = (max(0, first - y), max(0, start - x), min(self.unit[0], last - y), min(self.unit[1], stop - x))
                rgb = self._rgb(row, column, box)
                if rgb is not None:
                    place = inside[y + box[0] - first : y + box[2] - first, x + box[1] - start : x + box[3] - start]
                    place[:] = rgb
        return region

    def _decode_rgb(self, row: int, column: int) -> np.ndarray | None:
        return self._rgb(row, column, (0, 0, *self.unit))

    def _rgb(self, row: int, column: int, box: Sequence[int]) -> np.ndarray | None:
        """A part of a unit as (h, w, 3) uint8: top, left, bottom and right within it; ``None`` if the file omits it."""
        per_plane = math.ceil(self.shape[0] / self.unit[0]) * (across := math.ceil(self.shape[1] / self.unit[1]))
        parts = []
        for plane in self.planes:
            samples = self._samples(plane.page, plane.index * per_plane + row * across + column, row)
            if samples is None:
                return None
            parts.append(samples[box[0] : box[2], box[1] : box[3]])
        return self.colours.to_rgb(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2))

    def _samples(self, page: TiffPage | TiffFrame, index: int, row: int) -> np.ndarray | None:
        """A unit's samples, (h, w, S) uint8; ``None`` if the file omits it."""
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if count == 0:
            return None
        if offset + count > page.parent.filehandle.size:
            raise BundleError("the file ends before its pixels do.")
        if self.is_mapped:
            height = self.unit[0] if self.page.is_tiled else min(self.unit[0], self.shape[0] - row * self.unit[0])
            samples = self.page.samplesperpixel if self.page.planarconfig == 1 else 1
            shape = (height, self.unit[1], samples)
            if math.prod(shape) > count:
                raise BundleError("a tile has fewer bytes than pixels.")
            return self._bytes[offset : offset + math.prod(shape)].reshape(shape)
        with self.lock:
            handle = page.parent.filehandle
            handle.seek(offset)
            data = handle.read(count)
        tables = {}
        if self.page.compression in JPEG:
            tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        pixels = self.page.decode(data, index, **tables)[0]
        return None if pixels is None else pixels[0].view(np.uint8)

    @cached_property
    def _bytes(self) -> np.ndarray:
        return np.memmap(self.path, dtype=np.uint8, mode="r")


def unit_size(page: TiffPage) -> tuple[int, int]:
    """Height and width, in pixels, of the unit of decoding: a tile or a strip."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth
