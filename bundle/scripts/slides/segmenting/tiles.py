"""Tiling of a slide: cells, the tile around each cell, bands of cells, and blending weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from ...errors import BundleError


def blending_window(tile_px: int, step_px: int) -> torch.Tensor:
    """Blending weights of a tile: flat in the middle, with a raised-cosine falloff where tiles overlap.

    Weights of overlapping tiles add up to 1. The outermost weights are small but positive.

    Args:
        tile_px: side of a tile.
        step_px: stride between neighbouring tiles, at least half of ``tile_px``.

    Returns:
        (tile_px, tile_px) float32 in (0, 1].
    """
    overlap = tile_px - step_px
    ramp = torch.sin(math.pi / 2 * (torch.arange(overlap, dtype=torch.float64) + 0.5) / max(overlap, 1)) ** 2
    flat = torch.ones(tile_px - 2 * overlap, dtype=torch.float64)
    profile = torch.cat([ramp, flat, ramp.flip(0)])
    return torch.outer(profile, profile).float()


@dataclass(frozen=True)
class TileGrid:
    """Cells of side ``step_px`` that cover an image, each at the centre of a tile of side ``tile_px``.

    Tiles extend beyond the image by the margin, so that a border pixel is as far from a tile's edge as any other. Cells
    are grouped into bands, vertical stripes of the image that are processed one at a time from top to bottom: memory
    depends only on the band's width.

    Args:
        height, width: size of the image in pixels.
        tile_px: side of a tile.
        step_px: side of a cell; ``tile_px - step_px`` is even and at most half of ``tile_px``.
        band_cells: cells across a band.
    """

    height: int
    width: int
    tile_px: int
    step_px: int
    band_cells: int

    @property
    def margin_px(self) -> int:
        """Width by which a tile extends beyond its cell on each side."""
        return (self.tile_px - self.step_px) // 2

    @property
    def rows(self) -> int:
        """Number of cells down the image."""
        return math.ceil(self.height / self.step_px)

    @property
    def columns(self) -> int:
        """Number of cells across the image."""
        return math.ceil(self.width / self.step_px)

    @property
    def bands(self) -> list[range]:
        """The columns of cells in each band."""
        starts = range(0, self.columns, self.band_cells)
        return [range(start, min(start + self.band_cells, self.columns)) for start in starts]

    @property
    def neighbours(self) -> int:
        """Number of preceding tiles that overlap the pixels made final by a cell's tile: 1, or 0 without overlap."""
        return int(self.margin_px > 0)

    def strip_pixels(self, row: int) -> tuple[int, int]:
        """First pixel row that is final once the tiles of this row of cells are added, and the one after the last.

        The tiles of the next row start one margin above their cells; strips are the pixels between these lines.
        """
        return self._line(row, self.rows, self.height), self._line(row + 1, self.rows, self.height)

    def band_pixels(self, band: int) -> tuple[int, int]:
        """First pixel column of a band, and the one after the last."""
        cells = self.bands[band]
        return self._line(cells.start, self.columns, self.width), self._line(cells.stop, self.columns, self.width)

    def _line(self, cell: int, cells: int, length: int) -> int:
        """Start of a cell's tiles along an axis; the image's ends for the first and the last."""
        return 0 if cell == 0 else length if cell == cells else cell * self.step_px - self.margin_px


def step_of(tile_px: int, overlap: float) -> int:
    """Stride of tiles in pixels for an overlap fraction, such that tile margins are whole pixels.

    Raises:
        BundleError: if ``tile_px`` is below 1, or ``overlap`` is not in [0, 0.5].
    """
    if tile_px < 1:
        raise BundleError(f"`tile_px` must be a positive number of pixels, got {tile_px}.")
    if not 0 <= overlap <= 0.5:
        raise BundleError(f"`overlap` must be in [0, 0.5], got {overlap}; 0.25 blends a quarter of each tile's side.")
    return tile_px - 2 * int(tile_px * overlap / 2)


def cells_with_tissue(grid: TileGrid, tissue: np.ndarray) -> np.ndarray:
    """Find the cells with tissue: (rows, columns) bool.

    Args:
        grid: the cells.
        tissue: tissue mask of the whole image at low resolution, (h, w) bool.
    """
    counts = np.pad(tissue.cumsum(axis=0, dtype=np.int64).cumsum(axis=1), ((1, 0), (1, 0)))
    top, bottom = _covered(grid.rows, grid.step_px, grid.height, tissue.shape[0])
    left, right = _covered(grid.columns, grid.step_px, grid.width, tissue.shape[1])
    inside = counts[bottom][:, right] - counts[top][:, right] - counts[bottom][:, left] + counts[top][:, left]
    return inside > 0


def _covered(cells: int, step_px: int, length: int, mask_length: int) -> tuple[np.ndarray, np.ndarray]:
    """For each cell along an axis, the first mask pixel that it overlaps and the one after the last."""
    edges = np.minimum(np.arange(cells + 1) * step_px, length)
    nearest = nearest_pixels(np.arange(length), length, mask_length)
    return nearest[edges[:-1]], nearest[edges[1:] - 1] + 1


def nearest_pixels(positions: np.ndarray, length: int, mask_length: int) -> np.ndarray:
    """The mask pixel, along an axis, that contains the centre of each image pixel."""
    return np.minimum((2 * positions + 1) * mask_length // (2 * length), mask_length - 1)


def mirrored(first: int, last: int, length: int) -> np.ndarray:
    """Indices of pixels ``first`` to ``last`` along an axis of ``length`` pixels, mirrored at both ends."""
    positions = np.arange(first, last) % (2 * length)
    return np.where(positions < length, positions, 2 * length - 1 - positions)


def share_out(loads: Sequence[int], number: int) -> list[range]:
    """Split a sequence of loads into ``number`` contiguous parts of about equal sum."""
    ends = np.cumsum([0, *loads])
    cuts = [int(np.searchsorted(ends, ends[-1] * part / number)) for part in range(number)] + [len(loads)]
    return [range(first, last) for first, last in pairwise(cuts)]
