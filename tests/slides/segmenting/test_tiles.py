import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.slides.segmenting.tiles import (
    TileGrid,
    blending_window,
    cells_with_tissue,
    mirrored,
    nearest_pixels,
    share_out,
    step_of,
)


@pytest.mark.parametrize(("tile", "overlap", "step"), [(224, 0.25, 168), (224, 0.5, 112), (5, 0.5, 3), (64, 0, 64)])
def test_windows_of_neighbours_add_up_to_one(tile, overlap, step):
    assert step_of(tile, overlap) == step
    window = blending_window(tile, step).numpy()
    assert window.min() > 0 and window.max() <= 1
    sums = np.zeros((tile + 2 * step,) * 2)
    for y in range(0, 2 * step + 1, step):
        for x in range(0, 2 * step + 1, step):
            sums[y : y + tile, x : x + tile] += window
    assert np.allclose(sums[tile - step : -(tile - step) or None, tile - step : -(tile - step) or None], 1)


@pytest.mark.parametrize(
    ("height", "width", "tile", "step", "band"), [(100, 57, 16, 12, 2), (1, 1, 8, 4, 3), (24, 36, 12, 12, 1)]
)
def test_strips_of_bands_cover_the_image_once_and_lie_under_their_tiles(height, width, tile, step, band):
    grid, covered = TileGrid(height, width, tile, step, band), np.zeros((height, width), dtype=int)
    for number, cells in enumerate(grid.bands):
        left, right = grid.band_pixels(number)
        assert left >= max(0, cells.start - grid.neighbours) * step - grid.margin_px
        for row in range(grid.rows):
            top, bottom = grid.strip_pixels(row)
            covered[top:bottom, left:right] += 1
            assert row == grid.rows - 1 or bottom <= (row + 1) * step - grid.margin_px or bottom == height
    assert (covered == 1).all()


SIDES = st.integers(1, 70)
OVERLAPS = st.floats(0, 0.5)


@given(SIDES, SIDES, st.integers(1, 40), OVERLAPS, st.integers(1, 6))
def test_tiles_of_any_size_and_overlap_cover_any_image_once_with_weights_of_one(height, width, tile, overlap, band):
    step = step_of(tile, overlap)
    margin = (tile - step) // 2
    grid, window = TileGrid(height, width, tile, step, band), blending_window(tile, step).double().numpy()
    assert grid.margin_px == margin and 2 * margin + step == tile and window.min() > 0
    around = tile + margin  # tiles reach beyond the image; those beyond its cells are mirrored into it
    sums = np.zeros((height + 2 * around + tile, width + 2 * around + tile))
    for row in range(-1, grid.rows + 1):
        for column in range(-1, grid.columns + 1):
            y, x = around + row * step - margin, around + column * step - margin
            sums[y : y + tile, x : x + tile] += window
    assert np.allclose(sums[around : around + height, around : around + width], 1, atol=1e-5)
    covered = np.zeros((height, width), dtype=int)
    for number in range(len(grid.bands)):
        left, right = grid.band_pixels(number)
        for row in range(grid.rows):
            top, bottom = grid.strip_pixels(row)
            covered[top:bottom, left:right] += 1
    assert (covered == 1).all()
    assert [cell for cells in grid.bands for cell in cells] == list(range(grid.columns))


@given(st.lists(st.integers(0, 50)), st.integers(1, 9))
def test_any_loads_are_shared_out_wholly_and_in_order(loads, number):
    parts = share_out(loads, number)
    assert len(parts) == number and [index for part in parts for index in part] == list(range(len(loads)))


def test_cells_have_tissue_where_a_pixel_has():
    rng = np.random.default_rng(0)
    tissue = rng.random((13, 9)) > 0.9
    grid = TileGrid(101, 75, 12, 8, 4)
    rows, columns = nearest_pixels(np.arange(101), 101, 13), nearest_pixels(np.arange(75), 75, 9)
    full = tissue[np.ix_(rows, columns)]
    slow = [[full[8 * r : 8 * r + 8, 8 * c : 8 * c + 8].any() for c in range(grid.columns)] for r in range(grid.rows)]
    assert np.array_equal(cells_with_tissue(grid, tissue), slow)


def test_axes_are_mirrored_at_both_ends():
    assert mirrored(-3, 7, 4).tolist() == [2, 1, 0, 0, 1, 2, 3, 3, 2, 1]
    assert mirrored(-2, 3, 1).tolist() == [0] * 5


def test_loads_are_shared_out_evenly_and_wholly():
    loads = [5, 1, 1, 1, 5, 1, 1, 1]
    assert share_out(loads, 2) == [range(0, 4), range(4, 8)]
    for number in (1, 3, 20):
        parts = share_out(loads, number)
        assert [index for part in parts for index in part] == list(range(8)) and len(parts) == number
    assert share_out([], 2) == [range(0, 0)] * 2


@pytest.mark.parametrize("overlap", [-0.1, 0.6, float("nan")])
def test_refuses_overlaps_outside_0_to_a_half(overlap):
    with pytest.raises(ValueError, match=r"`overlap` must be in \[0, 0.5\], got"):
        step_of(224, overlap)


def test_refuses_tiles_without_pixels():
    with pytest.raises(ValueError, match="`tile_px` must be a positive number of pixels, got 0"):
        step_of(0, 0.25)
