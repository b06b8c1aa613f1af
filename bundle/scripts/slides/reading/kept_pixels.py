"""Pixels that are decoded once and kept: for levels whose unit of decoding is far larger than the blocks to read."""

import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Lock

import numpy as np

from ...errors import BundleError

LARGEST_IN_MEMORY = 64 << 20  # bytes; more goes to a temporary file


class KeptPixels:
    """A level's RGB, filled unit by unit, in memory or, if large, in a memory-mapped temporary file.

    Args:
        shape: height and width of the level in pixels.
        unit: height and width of a tile or strip.
        decode: decodes a unit, by its row and column among the units, to (h, w, 3) uint8.
        background: RGB of the units that the file omits.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        unit: tuple[int, int],
        decode: Callable[[int, int], np.ndarray | None],
        background: tuple[int, int, int],
    ) -> None:
        self.shape, self.unit, self.decode, self.background = shape, unit, decode, background
        counts = [math.ceil(side / step) for side, step in zip(shape, unit, strict=True)]
        self.filled = np.zeros(counts, dtype=bool)
        self.locks = [Lock() for _ in range(min(64, self.filled.size))]  # so that no unit is decoded twice
        self.opening = Lock()
        self.pixels: np.ndarray | None = None

    @property
    def held_bytes(self) -> int:
        """Memory taken at most: the pixels, unless in a file, and a unit while it is decoded."""
        kept = 3 * math.prod(self.shape)
        unit = 3 * min(math.prod(self.unit), math.prod(self.shape))
        return (kept if kept <= LARGEST_IN_MEMORY else 0) + 2 * unit

    def read(self, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        """Read a region inside the level, (bottom - top, right - left, 3) uint8."""
        for row in range(top // self.unit[0], math.ceil(bottom / self.unit[0])):
            for column in range(left // self.unit[1], math.ceil(right / self.unit[1])):
                if not self.filled[row, column]:
                    self._fill(row, column)
        return np.array(self.pixels[top:bottom, left:right])

    def _fill(self, row: int, column: int) -> None:
        with self.opening:
            if self.pixels is None:
                self.pixels = self._room()
        with self.locks[(row * self.filled.shape[1] + column) % len(self.locks)]:
            if self.filled[row, column]:
                return
            place = self.pixels[row * self.unit[0] :, column * self.unit[1] :]
            place = place[: self.unit[0], : self.unit[1]]
            unit = self.decode(row, column)
            place[:] = self.background if unit is None else unit[: place.shape[0], : place.shape[1]]
            self.filled[row, column] = True

    def _room(self) -> np.ndarray:
        shape = (*self.shape, 3)
        wanted = math.prod(shape)
        if wanted <= LARGEST_IN_MEMORY:
            return np.empty(shape, dtype=np.uint8)
        folder = Path(tempfile.gettempdir())
        free = shutil.disk_usage(folder).free
        if free < wanted:
            raise BundleError(
                f"its pixels must be decoded into a temporary file of {wanted / 1e9:.3g} GB, but {folder} has "
                f"{free / 1e9:.3g} GB free; set TMPDIR to a folder with room, or convert the slide to a tiled TIFF."
            )
        with tempfile.TemporaryFile() as file:  # the map keeps it
            return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
