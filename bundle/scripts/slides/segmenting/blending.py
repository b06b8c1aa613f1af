"""Run a network over a band of a slide and blend its tiles, yielding class map rows once they are final."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ...data.background import SMALLEST_GAP_PX, white_pixels
from ...data.classes import Classes
from ...errors import BundleError
from ...runs.devices import HostCopy, to_device
from ..reading.slide import SlideView
from .tiles import TileGrid, blending_window, cells_with_tissue, mirrored, nearest_pixels

CHUNK_PX = 2048  # columns of a strip finished at a time


@dataclass(frozen=True)
class Segmenter:
    """A network and the meaning of its channels.

    Args:
        network: maps (B, 3, T, T) in [0, 1] to logits (B, K, T, T).
        classes: the channels and the class map values; if there is a background class, white pixels become 0.
        device: device of the network.
        batch_size: tiles per batch.
        usage: settings, as JSON values, that affect the output but are not part of the weights.
    """

    network: nn.Module
    classes: Classes
    device: torch.device
    batch_size: int
    usage: Mapping[str, Any] = field(default_factory=dict)

    @torch.inference_mode()
    def probabilities(self, tiles: np.ndarray) -> torch.Tensor:
        """Class probabilities of ``tiles``, (B, T, T, 3) uint8, as (B, K, T, T) float32 on the network's device."""
        image = to_device(torch.from_numpy(tiles), self.device).permute(0, 3, 1, 2) / 255
        prob = self.network(image).softmax(dim=1)
        if prob.shape[1:] != (len(self.classes), *image.shape[2:]):
            raise BundleError(
                f"`network` must output {len(self.classes)} channels of its input's size, got {tuple(prob.shape)} for "
                f"{tuple(image.shape)}; set `class_names` to the network's classes."
            )
        return prob


class BandImage:
    """The pixels of a band, read block by block in threads, prefetching one row of blocks.

    Args:
        view: the slide.
        columns: first pixel column needed, and the one after the last.
        needed: blocks to read, (rows, columns) bool; the others are white.
        pool: reader threads.
    """

    def __init__(self, view: SlideView, columns: tuple[int, int], needed: np.ndarray, pool: ThreadPoolExecutor) -> None:
        self.view = view
        self.needed = needed
        self.pool = pool
        self.block_columns = range(columns[0] // view.block[1], math.ceil(columns[1] / view.block[1]))
        self.first_column = self.block_columns.start * view.block[1]
        self.width = min(self.block_columns.stop * view.block[1], view.shape[1]) - self.first_column
        self._rows: dict[int, np.ndarray] = {}
        self._ahead: dict[int, list[Future]] = {}

    def rows(self, first: int, last: int) -> np.ndarray:
        """Pixel rows ``first`` to ``last``, (last - first, ``width``, 3) uint8, columns from ``first_column``."""
        height = self.view.block[0]
        wanted = range(first // height, math.ceil(last / height))
        for row in wanted:
            if row not in self._rows:
                self._read_ahead(row)
                self._rows[row] = self._assemble(row)
        if wanted.stop < len(self.needed):
            self._read_ahead(wanted.stop)
        pixels = np.concatenate([self._rows[row] for row in wanted]) if len(wanted) > 1 else self._rows[wanted.start]
        return pixels[first - wanted.start * height : last - wanted.start * height]

    def forget(self, before: int) -> None:
        """Free the blocks above pixel row ``before``."""
        for row in [row for row in self._rows if (row + 1) * self.view.block[0] <= before]:
            del self._rows[row]

    def _read_ahead(self, row: int) -> None:
        if row not in self._rows and row not in self._ahead:
            columns = [column for column in self.block_columns if self.needed[row, column]]
            self._ahead[row] = [self.pool.submit(self._block, row, column) for column in columns]

    def _block(self, row: int, column: int) -> tuple[int, np.ndarray]:
        return column * self.view.block[1] - self.first_column, self.view.read_block(row, column)

    def _assemble(self, row: int) -> np.ndarray:
        """Assemble a row of blocks, waiting for the threads."""
        height = min(self.view.block[0], self.view.shape[0] - row * self.view.block[0])
        pixels = np.full((height, self.width, 3), 255, dtype=np.uint8)
        for future in self._ahead.pop(row):
            left, block = future.result()
            pixels[:, left : left + block.shape[1]] = block
        return pixels


class Blender:
    """Computes the maps of a slide, strip by strip.

    Tiles of cells without tissue are skipped. The others are summed on the network's device; only the finished maps are
    copied to the host, while the device works on the next row. A strip depends only on the slide, the grid, the network
    and the batch size: batches are taken from rows of tiles within a band, and tiles are summed in order.

    Args:
        view: the slide.
        grid: cells and tiles of the view.
        tissue: tissue mask of the whole view at low resolution, (h, w) bool.
        segmenter: the network.
        threads: number of reader threads.
    """

    def __init__(
        self, view: SlideView, grid: TileGrid, tissue: np.ndarray, segmenter: Segmenter, threads: int = 4
    ) -> None:
        self.view = view
        self.grid = grid
        self.tissue = tissue
        self.segmenter = segmenter
        self.cells = cells_with_tissue(grid, tissue)
        self.window = blending_window(grid.tile_px, grid.step_px).to(segmenter.device)
        self.values = torch.tensor(segmenter.classes.segmenter_values, dtype=torch.uint8, device=segmenter.device)
        self.halo_px = max(grid.margin_px, SMALLEST_GAP_PX - 1 if segmenter.classes.background else 0)
        self.needed = self._needed_blocks()
        self.pool = ThreadPoolExecutor(threads)

    def _needed_blocks(self) -> np.ndarray:
        """Blocks of the view under a tile, or within the halo of a cell with tissue: (rows, columns) bool."""
        shape = [math.ceil(side / block) for side, block in zip(self.view.shape, self.view.block, strict=True)]
        change = np.zeros((shape[0] + 1, shape[1] + 1), dtype=np.int32)
        spans = []
        for cells, side, block in zip(np.nonzero(self.cells), self.view.shape, self.view.block, strict=True):
            low, high = cells * self.grid.step_px - self.halo_px, (cells + 1) * self.grid.step_px + self.halo_px
            low = np.minimum(low, 2 * side - high)  # pixels mirrored at the far end
            spans.append((np.maximum(low, 0) // block, (np.minimum(high, side) - 1) // block + 1))
        (top, bottom), (left, right) = spans
        for sign, rows, columns in ((1, top, left), (-1, top, right), (-1, bottom, left), (1, bottom, right)):
            np.add.at(change, (rows, columns), sign)
        return change.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0

    def tiles_of_strip(self, band: int, row: int) -> int:
        """Number of tiles that a strip adds."""
        return int(self.cells[row, self._columns(band)].sum())

    def _columns(self, band: int) -> slice:
        cells = self.grid.bands[band]
        return slice(max(0, cells.start - self.grid.neighbours), cells.stop)

    def strips(
        self, band: int, rows: range, done: Callable[[int], None] = lambda tiles: None
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield each row of ``rows`` with its strip of the class map and of the entropy.

        Args:
            band: index of the band.
            rows: consecutive rows of cells.
            done: called with the number of tiles of each batch.

        Yields:
            The row and two maps, (strip's height, band's width) uint8: class map values, and the entropy of the class
            probabilities, scaled so that 255 is its maximum.

        Raises:
            BundleError: if the network's outputs are not finite.
        """
        grid, columns = self.grid, self._columns(band)
        left = columns.start * grid.step_px - grid.margin_px  # first column of the buffers
        width = (columns.stop - columns.start - 1) * grid.step_px + grid.tile_px
        # the last channel: weights
        sums = torch.zeros(len(self.segmenter.classes) + 1, grid.tile_px, width, device=self.segmenter.device)
        taken = mirrored(left, left + width, grid.width)
        first, last = grid.band_pixels(band)
        reach = (max(0, first - self.halo_px), min(grid.width, last + self.halo_px))
        reach = (min(reach[0], taken.min()), max(reach[1], taken.max() + 1))
        image = BandImage(self.view, reach, self.needed, self.pool)
        waiting = None  # row and maps being copied to the host
        for row in range(max(0, rows.start - grid.neighbours), rows.stop):
            self._add_row(sums, image, row, columns, taken - image.first_column, done)
            if waiting is not None:
                yield waiting[0], *self._finish(*waiting, image, band)
            waiting = (row, self._maps(sums, row, band, left)) if row in rows else None
            kept = grid.tile_px - grid.step_px  # rows that overlap the next row of tiles
            sums[:, :kept] = sums[:, grid.step_px :]
            sums[:, kept:] = 0
            image.forget((row + 1) * grid.step_px - grid.tile_px - self.halo_px)
        if waiting is not None:
            yield waiting[0], *self._finish(*waiting, image, band)

    def _add_row(
        self, sums: torch.Tensor, image: BandImage, row: int, columns: slice, taken: np.ndarray, done: Callable
    ) -> None:
        """Add the tiles of a row of cells to ``sums``, (K + 1, T, width), in the order of their columns."""
        grid, cells = self.grid, np.flatnonzero(self.cells[row, columns])
        if len(cells) == 0:
            return
        top = row * grid.step_px - grid.margin_px
        lines = mirrored(top, top + grid.tile_px, grid.height)
        pixels = image.rows(lines.min(), lines.max() + 1)[lines - lines.min()].take(taken, axis=1)  # (T, W, 3)
        for start in range(0, len(cells), self.segmenter.batch_size):
            places = cells[start : start + self.segmenter.batch_size] * grid.step_px
            prob = self.segmenter.probabilities(np.stack([pixels[:, x : x + grid.tile_px] for x in places]))
            for x, part in zip(places, prob * self.window, strict=False):
                sums[:-1, :, x : x + grid.tile_px] += part
                sums[-1, :, x : x + grid.tile_px] += self.window
            done(len(places))

    def _maps(self, sums: torch.Tensor, row: int, band: int, left: int) -> list[tuple[range, HostCopy]]:
        """Classify a strip in chunks of columns, skipping those without tissue, and start copying them to the host."""
        (top, bottom), (first, last) = self.grid.strip_pixels(row), self.grid.band_pixels(band)
        offset = top - (row * self.grid.step_px - self.grid.margin_px)
        maps = []
        for start in range(first, last, CHUNK_PX):
            columns = range(start, min(start + CHUNK_PX, last))
            if self._tissue(range(top, bottom), columns).any():
                part = sums[:, offset : offset + bottom - top, columns.start - left : columns.stop - left]
                maps.append((columns, HostCopy(self._classify(part))))
        return maps

    def _tissue(self, lines: range, columns: range) -> np.ndarray:
        """The tissue mask of a part of the view, (h, w) bool."""
        line = nearest_pixels(np.arange(lines.start, lines.stop), self.grid.height, self.tissue.shape[0])
        column = nearest_pixels(np.arange(columns.start, columns.stop), self.grid.width, self.tissue.shape[1])
        return self.tissue[np.ix_(line, column)]

    def _finish(
        self, row: int, maps: Sequence[tuple[range, HostCopy]], image: BandImage, band: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Build the strip's class map and entropy from the copied maps."""
        (top, bottom), (first, last) = self.grid.strip_pixels(row), self.grid.band_pixels(band)
        classes = np.full((bottom - top, last - first), self.segmenter.classes.outside, dtype=np.uint8)
        entropy = np.zeros_like(classes)
        for columns, copy in maps:
            values, shares, numbers = copy.get().numpy()
            if not numbers.all():
                raise BundleError("the network's outputs must be finite; use other weights, or another `precision`.")
            if self.segmenter.classes.background:
                white = self._white(image, top, bottom, columns.start, columns.stop)
                values[white], shares[white] = 0, 0
            tissue = self._tissue(range(top, bottom), columns)
            classes[:, columns.start - first : columns.stop - first][tissue] = values[tissue]
            entropy[:, columns.start - first : columns.stop - first][tissue] = shares[tissue]
        return classes, entropy

    def _classify(self, sums: torch.Tensor) -> torch.Tensor:
        """Map ``sums``, (K + 1, h, w), to class map values, entropy and whether they are finite, (3, h, w) uint8."""
        prob = sums[:-1] / sums[-1].clamp(min=torch.finfo(sums.dtype).tiny)
        values = self.values[prob.max(dim=0).indices]
        largest = math.log(max(2, len(prob)))
        logarithms = prob.clamp(min=torch.finfo(prob.dtype).tiny).log_()
        entropy = logarithms.mul_(prob).sum(dim=0).mul_(-255 / largest).round_()
        finite = torch.isfinite(entropy)  # one non-finite value makes its pixel's sum non-finite
        return torch.stack([values, entropy.clamp_(0, 255).to(torch.uint8), finite.to(torch.uint8)])

    def _white(self, image: BandImage, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Find white pixels in a part of the slide, (h, w) bool, with the same result as on the whole slide.

        Whether a component is small depends on its pixels within a distance of 50, all of which are in the halo.
        """
        reach = SMALLEST_GAP_PX - 1
        above, below = max(0, top - reach), min(self.grid.height, bottom + reach)
        before, after = max(0, left - reach), min(self.grid.width, right + reach)
        pixels = image.rows(above, below)[:, before - image.first_column : after - image.first_column]
        return white_pixels(pixels)[top - above : bottom - above, left - before : right - before]


def stretches(rows: Sequence[int]) -> Iterator[range]:
    """Group sorted integers into contiguous ranges."""
    waiting = deque(rows)
    while waiting:
        start = stop = waiting.popleft()
        while waiting and waiting[0] == stop + 1:
            stop = waiting.popleft()
        yield range(start, stop + 1)
