"""Compute the strips of a slide's maps: the plan, which is the same for every process, and the work."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...errors import BundleError
from ...files.atomic import atomic_path, write_json
from ..outputs.results import OVERLAY_PX, write_results
from ..reading.description import PLAUSIBLE_MPP
from ..reading.slide import BLOCK_PX, Slide, SlideView, thumbnail_view
from .blending import Blender, Segmenter, stretches
from .strip_files import StripFiles
from .tiles import TileGrid, share_out, step_of
from .tissue import require_saturation, tissue_mask

logger = logging.getLogger(__name__)

TISSUE_MPP = 8.0  # resolution of the tissue mask
TISSUE_PX = 2048  # maximum longer side of the tissue mask
LARGEST_BAND_PX = 16384
LITTLE_TISSUE = 0.01  # share of a slide below which a warning is due
DIGEST_BYTES = 1 << 20  # hashed at each end of a slide file


@dataclass(frozen=True)
class SlidePlan:
    """How to process a slide.

    Args:
        slide: the slide.
        view: the slide at the network's resolution.
        grid: tiling of the view.
        tissue: tissue mask of the view, (h, w) bool.
        picture: thumbnail of the view, (h, w, 3) uint8.
        blender: computes the strips.
        settings: everything the results depend on, as JSON values.
    """

    slide: Slide
    view: SlideView
    grid: TileGrid
    tissue: np.ndarray
    picture: np.ndarray
    blender: Blender
    settings: dict[str, Any]

    @cached_property
    def busy(self) -> list[tuple[int, int]]:
        """Band and row of each strip that can have tissue."""
        near = self.blender.cells.copy()  # tiles of a cell, or of the one above it, reach into its strip
        near[1:] |= self.blender.cells[:-1]
        near[:, 1:] |= near[:, :-1].copy()
        bands = enumerate(self.grid.bands)
        return [(band, int(row)) for band, cells in bands for row in np.flatnonzero(near[:, cells].any(axis=1))]

    def share(self, rank: int, world_size: int) -> list[tuple[int, int]]:
        """The strips of one of several processes: a contiguous part with about an equal number of tiles."""
        loads = [1 + self.blender.tiles_of_strip(band, row) for band, row in self.busy]
        return [self.busy[index] for index in share_out(loads, world_size)[rank]]


class SlideEngine:
    """Segments slides with one network.

    Args:
        segmenter: the network.
        model_mpp: micrometres per pixel that the network was trained at.
        tile_px: side of a tile.
        overlap: fraction of a tile's side that overlaps with its neighbour, in [0, 0.5].
        budget_gb: memory budget, in 10^9 bytes. It does not include the network's own memory, which a smaller batch
            size reduces.
        smallest_tissue_mm2: smaller pieces of tissue are removed, and smaller holes filled.
        threads: number of reader threads.
        tissue_saturation: saturation of tissue, in [0, 1]; ``None`` to choose it for each slide (see ``tissue_mask``).

    Raises:
        BundleError: if ``model_mpp`` is unknown or implausible, the budget is too small for a band of tiles, or another
            setting is out of its range.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        model_mpp: float | None,
        tile_px: int,
        overlap: float = 0.5,
        budget_gb: float = 2.0,
        smallest_tissue_mm2: float = 0.005,
        threads: int = 4,
        tissue_saturation: float | None = None,
    ) -> None:
        if model_mpp is None:
            raise BundleError(
                "`model_mpp` must be the micrometres per pixel of the network's training data, got none from its "
                "config; pass --model_mpp."
            )
        if not PLAUSIBLE_MPP[0] <= model_mpp <= PLAUSIBLE_MPP[1]:
            raise BundleError(
                f"`model_mpp` must be between {PLAUSIBLE_MPP[0]} and {PLAUSIBLE_MPP[1]} micrometres per pixel, got "
                f"{model_mpp}; pass a number such as 0.5."
            )
        if not isinstance(threads, int) or threads < 1:
            raise BundleError(f"`threads` must be a whole number of at least 1, got {threads}; 1 reads in one thread.")
        self.tissue_saturation = None if tissue_saturation is None else require_saturation(tissue_saturation)
        self.segmenter = segmenter
        self.model_mpp = float(model_mpp)
        self.tile_px = tile_px
        self.step_px = step_of(tile_px, overlap)
        self.smallest_tissue_mm2 = smallest_tissue_mm2
        self.threads = threads
        self.budget_gb = budget_gb
        self.band_cells = self.cells_in_budget(held_bytes=0)

    def cells_in_budget(self, held_bytes: int) -> int:
        """Maximum width of a band in cells, for a slide whose reader holds so many bytes."""
        return cells_in_budget(self.budget_gb, len(self.segmenter.classes), self.tile_px, self.step_px, held_bytes)

    @cached_property
    def network_hash(self) -> str:
        """SHA-256 of the network's weights as used."""
        return hash_weights(self.segmenter.network)

    def plan(self, slide: Slide, region: Sequence[int] | None = None) -> SlidePlan:
        """Plan the processing of a slide.

        Args:
            slide: the slide.
            region: top, left, height and width in pixels of level 0; ``None`` for the whole slide.
        """
        view = SlideView(slide, self.model_mpp, region)
        small = thumbnail_view(slide, TISSUE_MPP, TISSUE_PX, region)
        thumbnail = small.read()
        tissue = tissue_mask(thumbnail, sum(small.mpp) / 2, self.smallest_tissue_mm2, self.tissue_saturation)
        if region is None:
            warn_of_little_tissue(slide.path.name, tissue, self.tissue_saturation)
        large = thumbnail_view(slide, self.model_mpp, OVERLAY_PX, region)
        picture = thumbnail if large.shape == small.shape else large.read()
        grid = TileGrid(
            *view.shape, self.tile_px, self.step_px, min(self.band_cells, self.cells_in_budget(slide.image.held_bytes))
        )
        blender = Blender(view, grid, tissue, self.segmenter, self.threads)
        return SlidePlan(slide, view, grid, tissue, picture, blender, self._settings(slide, view, grid, region))

    def _settings(self, slide: Slide, view: SlideView, grid: TileGrid, region: Sequence[int] | None) -> dict[str, Any]:
        """Everything a slide's results depend on."""
        return {
            "slide": {"bytes": slide.path.stat().st_size, "sha256_of_ends": hash_ends(slide.path)},
            "backend": slide.backend,
            "level": view.level,
            "mpp_of_level_0": list(slide.mpp),
            "mpp_from": slide.mpp_source,
            "bounds": None if slide.image.bounds is None else list(slide.image.bounds),
            "model_mpp": self.model_mpp,
            "mpp": list(view.mpp),
            "size_px": list(view.shape),
            "region": None if region is None else list(region),
            "tile_px": self.tile_px,
            "step_px": self.step_px,
            "band_cells": grid.band_cells,
            "smallest_tissue_mm2": self.smallest_tissue_mm2,
            "tissue_saturation": self.tissue_saturation,
            "batch_size": self.segmenter.batch_size,
            "network_sha256": self.network_hash,
            "network_usage": dict(self.segmenter.usage),
            "values": list(self.segmenter.classes.segmenter_values),
            "names": list(self.segmenter.classes.value_names),
            "palette": [list(color) for color in self.segmenter.classes.palette],
            "background": self.segmenter.classes.background,
        }

    def compute(
        self,
        plan: SlidePlan,
        strips: StripFiles,
        rank: int = 0,
        world_size: int = 1,
        done: Callable[[int], None] = lambda tiles: None,
    ) -> None:
        """Compute this process's missing strips.

        Args:
            plan: the plan.
            strips: storage for finished strips.
            rank, world_size: index of this process and number of processes.
            done: called with the number of tiles of each batch.
        """
        finished = strips.finished()
        todo = [strip for strip in plan.share(rank, world_size) if strip not in finished]
        for band in sorted({within for within, _ in todo}):
            for rows in stretches([row for within, row in todo if within == band]):
                for row, classes, entropy in plan.blender.strips(band, rows, done):
                    strips.write(band, row, classes, entropy)

    def tiles_left(self, plan: SlidePlan, strips: StripFiles, rank: int = 0, world_size: int = 1) -> int:
        """Number of tiles that ``compute`` would run through the network."""
        finished = strips.finished()
        todo = [strip for strip in plan.share(rank, world_size) if strip not in finished]
        halo = {(band, row - 1) for band, row in todo if row > 0 and plan.grid.neighbours} - set(todo)
        return sum(plan.blender.tiles_of_strip(*strip) for strip in [*todo, *halo])

    def save(self, plan: SlidePlan, strips: StripFiles, folder: str | Path, record: dict[str, Any]) -> None:
        """Write a slide's results atomically from its finished strips.

        Args:
            plan: the plan.
            strips: all strips of the slide.
            folder: folder to create, named after the slide.
            record: contents of ``record.json`` besides the settings.
        """
        folder = Path(folder)
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            write_results(
                temporary, folder.name, plan.view, plan.grid, strips, self.segmenter.classes, plan.tissue, plan.picture
            )
            write_json(temporary / "record.json", {"settings": plan.settings, **record})


def warn_of_little_tissue(name: str, tissue: np.ndarray, least_saturation: float | None) -> None:
    """Log a warning if hardly any of a slide is tissue, as happens if its stain is pale or it is grey."""
    share = tissue.mean()
    if share < LITTLE_TISSUE:
        used = "5 to 15 %, by Otsu's method" if least_saturation is None else f"{least_saturation:.3g}"
        logger.warning(
            f"{name}: only {share:.2%} of the slide is tissue, of a saturation of at least {used}. If it has more, "
            "lower --tissue-saturation, for instance to 0.03; 0 takes all that was scanned for tissue."
        )


def cells_in_budget(budget_gb: float, num_classes: int, tile_px: int, step_px: int, held_bytes: int = 0) -> int:
    """Maximum width of a band in cells.

    What the reader holds is subtracted from the budget. A quarter of the rest is for a band's sums and pixels, and
    the others are for Python and PyTorch, the network, the reader's cache and writing.
    """
    per_column = 4 * tile_px * (num_classes + 1) + 3 * 3 * BLOCK_PX + 3 * 3 * tile_px + 2 * step_px  # bytes
    columns = min((budget_gb * 1e9 - held_bytes) / 4 / per_column, LARGEST_BAND_PX)
    if not columns >= 2 * tile_px:
        raise BundleError(
            f"`budget_gb` must leave room for two tiles of {tile_px} px side by side, got {budget_gb}; set at least "
            f"{(held_bytes + 4 * 2 * tile_px * per_column) / 1e9:.2g}."
        )
    return max(1, int(columns - tile_px) // step_px)


def hash_weights(network: nn.Module) -> str:
    """SHA-256 of the names, types, shapes and values of a network's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def hash_ends(path: str | Path) -> str:
    """SHA-256 of the first and the last MiB of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        digest.update(file.read(DIGEST_BYTES))
        file.seek(max(0, Path(path).stat().st_size - DIGEST_BYTES))
        digest.update(file.read(DIGEST_BYTES))
    return digest.hexdigest()
