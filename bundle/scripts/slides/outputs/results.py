"""Write a slide's result files from its finished strips."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from ...data.classes import WHITE, Classes
from ...files.pictures import Palette, overlay, write_mask, write_png
from ..outlines.geojson import GeoJSONWriter
from ..outlines.polygons import PolygonTracer
from ..reading.slide import SlideView
from ..segmenting.strip_files import StripFiles
from ..segmenting.tiles import TileGrid, nearest_pixels
from .areas import AreaCounter
from .ome_tiff import PyramidWriter, every_second, mean_of_four

TRACED_PX = 1 << 20  # pixels traced at a time
OVERLAY_PX = 2048  # maximum longer side of the mask overlay


def joined_strips(grid: TileGrid, strips: StripFiles, outside: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield class map and entropy from top to bottom, (h, width) uint8; missing strips have no tissue."""
    finished = strips.finished()
    bands = [grid.band_pixels(band) for band in range(len(grid.bands))]
    for row in range(grid.rows):
        top, bottom = grid.strip_pixels(row)
        classes = np.full((bottom - top, grid.width), outside, dtype=np.uint8)
        entropy = np.zeros_like(classes)
        for band, (left, right) in enumerate(bands):
            if (band, row) in finished:
                classes[:, left:right], entropy[:, left:right] = strips.read(band, row)
        yield classes, entropy


def write_results(
    folder: str | Path,
    name: str,
    view: SlideView,
    grid: TileGrid,
    strips: StripFiles,
    classes: Classes,
    tissue: np.ndarray,
    picture: np.ndarray,
) -> None:
    """Write the maps, the annotations, the areas, the tissue mask and the mask overlay of a slide.

    Args:
        folder: output folder; also used for temporary files.
        name: name of the slide.
        view: the slide at the maps' resolution.
        grid: its tiling.
        strips: all strips that have tissue.
        classes: the meaning of the class map values.
        tissue: tissue mask of the slide, (h, w) bool.
        picture: thumbnail of the slide, (h, w, 3) uint8.
    """
    folder, areas, small = Path(folder), AreaCounter(), SmallMap(picture.shape[:2], view.shape)
    tracer = PolygonTracer(grid.width, [value for value in range(256) if value not in classes.tissues])
    traced = max(1, TRACED_PX // grid.width)
    with ExitStack() as stack:
        classes_file = stack.enter_context(PyramidWriter(view.shape, every_second, folder))
        entropy_file = stack.enter_context(PyramidWriter(view.shape, mean_of_four, folder))
        annotations = stack.enter_context(GeoJSONWriter(classes, view.scale, view.origin, folder))
        for values, entropy in joined_strips(grid, strips, classes.outside):
            classes_file.add(values)
            entropy_file.add(entropy)
            areas.add(values, entropy)
            small.add(values)
            for start in range(0, len(values), traced):
                annotations.add(tracer.add(values[start : start + traced]))
        annotations.add(tracer.finish())
        classes_file.save(folder / "classes.ome.tif", f"{name}: classes", view.mpp, classes.colors)
        entropy_file.save(folder / "entropy.ome.tif", f"{name}: entropy", view.mpp)
        annotations.save(folder / "annotations.geojson", name)
    areas.save(folder, classes, view.mpp)
    write_mask(folder / "tissue.png", tissue.astype(np.uint8), [[255, 255, 255], [0, 0, 0]])
    write_png(folder / "overlay.png", clear_overlay(picture, small.values, classes))


class SmallMap:
    """Downsamples a map that arrives from top to bottom, by nearest neighbour.

    Args:
        shape: height and width of the small map.
        full: height and width of the full map.
    """

    def __init__(self, shape: Sequence[int], full: Sequence[int]) -> None:
        self.values = np.zeros(shape, dtype=np.uint8)
        self.rows, self.columns = (
            nearest_pixels(np.arange(small), small, large) for small, large in zip(shape, full, strict=True)
        )
        self.top = 0

    def add(self, rows: np.ndarray) -> None:
        """Add the next rows, (h, width) uint8."""
        here = np.flatnonzero((self.rows >= self.top) & (self.rows < self.top + len(rows)))
        self.values[here] = rows[self.rows[here] - self.top][:, self.columns]
        self.top += len(rows)


def clear_overlay(picture: np.ndarray, values: np.ndarray, classes: Classes) -> Image.Image:
    """Blend the class colours over a slide thumbnail; pixels without a class stay transparent.

    Args:
        picture: the thumbnail, (h, w, 3) uint8.
        values: class map values, (h, w) uint8.
        classes: the meaning of the values.
    """
    return overlay(picture, *clear_values(values, classes))


def clear_values(values: np.ndarray, classes: Classes) -> tuple[np.ndarray, Palette]:
    """Renumber class map values for display: 0 for pixels without a class, 1, 2, ... for the tissues.

    Returns:
        The new values, in the shape of ``values``, and their palette.
    """
    shifted = np.zeros(256, dtype=np.uint8)
    shifted[classes.tissues] = np.arange(1, len(classes.tissues) + 1)
    return shifted[values], [WHITE, *(classes.colors[value] for value in classes.tissues)]
