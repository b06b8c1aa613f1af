import numpy as np
import pytest

from scripts.slides.segmenting.strip_files import MapStrips, StripFiles
from scripts.slides.segmenting.tiles import TileGrid


def test_strips_come_back(tmp_path):
    strips, rng = StripFiles(tmp_path / "strips"), np.random.default_rng(0)
    assert strips.finished() == set()
    maps = {(b, r): rng.integers(0, 256, (2, 5, 7 + r), dtype=np.uint8) for b, r in ((0, 0), (0, 12), (3, 100000))}
    for place, (classes, entropy) in maps.items():
        strips.write(*place, classes, entropy)
    assert strips.finished() == set(maps)
    assert all(np.array_equal(np.stack(strips.read(*place)), pair) for place, pair in maps.items())


@pytest.mark.parametrize(
    "change", [lambda data: data[:-3], lambda data: b"", lambda data: b"XXXX" + data[4:], lambda data: data + b"1"]
)
def test_damaged_strips_are_named(tmp_path, change):
    strips = StripFiles(tmp_path)
    strips.write(0, 5, *np.zeros((2, 3, 4), dtype=np.uint8))
    path = strips.path(0, 5)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path} must be an intact strip: .* Delete it, and repeat the command."):
        strips.read(0, 5)


@pytest.mark.parametrize("step", [1, 2, 4, 7])
def test_strips_in_memory_make_up_the_maps_or_every_so_many_th_pixel_of_them(step):
    grid = TileGrid(75, 101, tile_px=16, step_px=8, band_cells=5)
    classes, entropy = np.random.default_rng(0).integers(0, 256, (2, grid.height, grid.width), dtype=np.uint8)
    strips, bands = MapStrips(grid, outside=9, step=step), range(len(grid.bands))
    assert len(bands) > 1 and strips.finished() == set()
    for band, row in [(band, row) for band in bands for row in range(grid.rows)][1:]:
        place = tuple(slice(*ends) for ends in (grid.strip_pixels(row), grid.band_pixels(band)))
        strips.write(band, row, classes[place], entropy[place])
    left_out = tuple(slice(*ends) for ends in (grid.strip_pixels(0), grid.band_pixels(0)))
    count = classes.size - classes[left_out].size
    classes[left_out], entropy[left_out] = 9, 0
    assert np.array_equal(strips.classes, classes[::step, ::step])
    assert np.array_equal(strips.entropy, entropy[::step, ::step])
    assert strips.counter.counts.sum() == count  # all pixels that were written, whatever is kept
