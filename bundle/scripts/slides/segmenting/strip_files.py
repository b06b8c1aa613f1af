"""Finished strips of a slide's maps: as small files, so that an interrupted run can resume, or in memory."""

import struct
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np

from ...errors import BundleError
from ...files.atomic import atomic_path
from ..outputs.areas import AreaCounter
from .tiles import TileGrid

HEADER = struct.Struct("<4sIIII")  # mark, height, width, bytes of the class map, bytes of the entropy
MARK = b"HSB1"


class StripFiles:
    """The strips of a slide in a folder, by band and row.

    Args:
        folder: folder for the strips; created if needed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, band: int, row: int) -> Path:
        """The path of a strip."""
        return self.folder / f"band{band:04d}_row{row:06d}.strip"

    def write(self, band: int, row: int, classes: np.ndarray, entropy: np.ndarray) -> None:
        """Write a strip's two maps, (h, w) uint8."""
        parts = [zlib.compress(np.ascontiguousarray(values), 1) for values in (classes, entropy)]
        with atomic_path(self.path(band, row)) as temporary, open(temporary, "wb") as file:
            file.write(HEADER.pack(MARK, *classes.shape, *map(len, parts)))
            file.writelines(parts)

    def read(self, band: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Read a strip's two maps, (h, w) uint8.

        Raises:
            BundleError: if the file is damaged.
        """
        path = self.path(band, row)
        data = path.read_bytes()
        try:
            mark, height, width, *lengths = HEADER.unpack_from(data)
            ends = [HEADER.size, HEADER.size + lengths[0], HEADER.size + sum(lengths)]
            maps = [zlib.decompress(data[first:last]) for first, last in pairwise(ends)]
            if mark != MARK or ends[-1] != len(data):
                raise BundleError("it is not a strip.")
            classes, entropy = (np.frombuffer(part, dtype=np.uint8).reshape(height, width) for part in maps)
        except (struct.error, zlib.error, ValueError) as error:
            raise BundleError(f"{path} must be an intact strip: {error} Delete it, and repeat the command.") from error
        return classes, entropy

    def finished(self) -> set[tuple[int, int]]:
        """Band and row of each finished strip."""
        names = (path.stem for path in self.folder.glob("band*_row*.strip"))
        return {(int(name[4:8]), int(name[12:])) for name in names}


class MapStrips:
    """In-memory alternative to ``StripFiles``.

    Args:
        grid: tiling of the slide.
        outside: class map value of pixels that are never written.
        step: keep every ``step``-th pixel of the maps, starting with the first.

    Attributes:
        classes, entropy: the maps, (H, W) uint8.
        counter: counts of all written pixels, by value and entropy.
    """

    def __init__(self, grid: TileGrid, outside: int, step: int = 1) -> None:
        self.grid = grid
        self.step = step
        shape = [-(-side // step) for side in (grid.height, grid.width)]
        self.classes = np.full(shape, outside, dtype=np.uint8)
        self.entropy = np.zeros(shape, dtype=np.uint8)
        self.counter = AreaCounter()

    def finished(self) -> set[tuple[int, int]]:
        """No strips: each map is computed from scratch."""
        return set()

    def write(self, band: int, row: int, classes: np.ndarray, entropy: np.ndarray) -> None:
        """Copy a strip's two maps, (h, w) uint8, into the slide's maps."""
        self.counter.add(classes, entropy)
        ends = self.grid.strip_pixels(row), self.grid.band_pixels(band)
        place = tuple(slice(-(-start // self.step), -(-stop // self.step)) for start, stop in ends)
        kept = tuple(slice(-start % self.step, None, self.step) for start, _ in ends)
        self.classes[place], self.entropy[place] = classes[kept], entropy[kept]
