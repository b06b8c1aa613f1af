"""Write a map as pyramidal, tiled OME-TIFF, row by row; equal pixels give equal bytes."""

import math
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import tifffile

from ...files.atomic import atomic_path

TILE_PX = 256
LARGEST_TOP_PX = 1024  # maximum side of the pyramid's top level
BIG_BYTES = 3 << 30  # classic TIFF offsets end at 4 GB
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://www.openmicroscopy.org/Schemas/OME/2016-06")


def every_second(rows: np.ndarray) -> np.ndarray:
    """Halve the size to (ceil(h / 2), ceil(w / 2)) by taking every second pixel: for class maps."""
    return rows[::2, ::2]


def mean_of_four(rows: np.ndarray) -> np.ndarray:
    """Halve the size to (ceil(h / 2), ceil(w / 2)) uint8 by averaging, halves rounded up: for continuous values."""
    even = np.pad(rows, [(0, side % 2) for side in rows.shape], mode="edge").astype(np.uint16)
    return ((even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2] + 2) >> 2).astype(np.uint8)


class _Level:
    """A level's compressed tiles in a temporary file."""

    def __init__(self, shape: tuple[int, int], folder: Path) -> None:
        self.shape = shape
        self.waiting: list[np.ndarray] = []  # rows that do not fill a row of tiles yet
        self.file = TemporaryFile(dir=folder)
        self.sizes: list[int] = []

    def add_tiles(self, rows: np.ndarray, pool: ThreadPoolExecutor) -> None:
        """Compress a row of tiles, (up to TILE_PX, width) uint8, padded with 0."""
        filled = np.zeros((TILE_PX, math.ceil(self.shape[1] / TILE_PX) * TILE_PX), dtype=np.uint8)
        filled[: rows.shape[0], : rows.shape[1]] = rows
        tiles = (filled[:, x : x + TILE_PX] for x in range(0, filled.shape[1], TILE_PX))
        for data in pool.map(lambda tile: zlib.compress(np.ascontiguousarray(tile), 6), tiles):
            self.file.write(data)
            self.sizes.append(len(data))

    def tiles(self) -> Iterator[bytes]:
        """The compressed tiles in order."""
        self.file.seek(0)
        return (self.file.read(size) for size in self.sizes)


class PyramidWriter:
    """Context manager that takes a map from top to bottom and builds its pyramid; ``save`` writes the file.

    Args:
        shape: height and width of the map in pixels.
        halve: downsamples rows by 2: ``every_second`` or ``mean_of_four``.
        folder: folder for temporary files.
    """

    def __init__(self, shape: tuple[int, int], halve: Callable[[np.ndarray], np.ndarray], folder: str | Path) -> None:
        self.halve = halve
        shapes = [tuple(shape)]
        while max(shapes[-1]) > LARGEST_TOP_PX:
            shapes.append(tuple(math.ceil(side / 2) for side in shapes[-1]))
        self.levels = [_Level(shape, Path(folder)) for shape in shapes]
        self.pool = ThreadPoolExecutor(2)

    def __enter__(self) -> "PyramidWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown()
        for level in self.levels:
            level.file.close()

    def add(self, rows: np.ndarray) -> None:
        """Add the next rows, (h, width) uint8."""
        self._add(0, rows, last=False)

    def _add(self, index: int, rows: np.ndarray, last: bool) -> None:
        """Add rows to a level, and complete rows of tiles to the levels above; ``last`` flushes incomplete ones too."""
        level = self.levels[index]
        level.waiting.append(rows)
        height = sum(len(part) for part in level.waiting)
        taken = height if last else height - height % TILE_PX
        done = []
        if taken:
            joined = np.concatenate(level.waiting)
            level.waiting = [joined[taken:].copy()]
            done = [joined[top : top + TILE_PX] for top in range(0, taken, TILE_PX)]
        for part in done:
            level.add_tiles(part, self.pool)
        if index + 1 < len(self.levels):
            smaller = [self.halve(part) for part in done] or [np.empty((0, self.levels[index + 1].shape[1]), np.uint8)]
            for position, part in enumerate(smaller):
                self._add(index + 1, part, last and position == len(smaller) - 1)

    def save(
        self, path: str | Path, name: str, mpp: Sequence[float], palette: Sequence[Sequence[int]] | None = None
    ) -> None:
        """Write the file.

        Args:
            path: output file; its name should end in ``.ome.tif``.
            name: name of the image in the file, from which its UUID is derived.
            mpp: micrometres per pixel, (y, x).
            palette: RGB colour, 0..255, of each value; ``None`` for greyscale.
        """
        self._add(0, np.empty((0, self.levels[0].shape[1]), np.uint8), last=True)
        colormap = None
        if palette is not None:
            colormap = np.zeros((3, 256), dtype=np.uint16)
            colormap[:, : len(palette)] = np.asarray(palette, dtype=np.uint16).T * 257
        big = sum(sum(level.sizes) for level in self.levels) > BIG_BYTES
        options = {"bigtiff": big, "byteorder": "<", "ome": True}
        with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, **options) as tiff:
            for index, level in enumerate(self.levels):
                scale = 1e4 / 2**index  # divided by the first level's mpp: pixels per centimetre
                tiff.write(
                    level.tiles(),
                    shape=level.shape,
                    dtype=np.uint8,
                    tile=(TILE_PX, TILE_PX),
                    compression="zlib",
                    photometric="minisblack" if colormap is None else "palette",
                    colormap=colormap,
                    subifds=len(self.levels) - 1 if index == 0 else None,
                    subfiletype=int(index > 0),
                    resolution=(scale / mpp[1], scale / mpp[0]),
                    resolutionunit="CENTIMETER",
                    metadata=ome_metadata(name, level.shape, mpp) if index == 0 else None,
                    software=False,
                )


def ome_metadata(name: str, shape: Sequence[int], mpp: Sequence[float]) -> dict[str, Any]:
    """Metadata that tifffile writes as OME-XML for a single-channel image, deterministic for a given image."""
    return {
        "UUID": str(uuid.uuid5(NAMESPACE, f"{name} {tuple(shape)} {tuple(mpp)}")),  # tifffile's is random
        "Creator": "scripts.slides",  # tifffile's includes its version
        "Name": name,
        "axes": "YX",
        "PhysicalSizeX": f"{mpp[1]:.10g}",
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": f"{mpp[0]:.10g}",
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": name},
    }
