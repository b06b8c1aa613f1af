import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import tifffile
from PIL import Image

from scripts.slides.outputs.ome_tiff import PyramidWriter, every_second, mean_of_four

PALETTE = [[255, 255, 255], [205, 51, 51], [0, 255, 0]]


def write(path, values, halve=every_second, height=100, palette=PALETTE):
    with PyramidWriter(values.shape, halve, path.parent) as writer:
        for top in range(0, len(values), height):
            writer.add(values[top : top + height])
        writer.save(path, 'slide "7" & co', (0.5, 0.25), palette)
    return path


def random_map(shape, values=3):
    return np.random.default_rng(0).integers(0, values, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(1, 1), (256, 256), (257, 1300), (2050, 700), (1025, 1023)])
@pytest.mark.parametrize("height", [1000, 77])
def test_levels_are_those_of_the_map(tmp_path, shape, height):
    values = random_map(shape)
    with tifffile.TiffFile(write(tmp_path / "a.ome.tif", values, height=height)) as tiff:
        assert tiff.is_ome and len(tiff.series) == 1
        levels = tiff.series[0].levels
        assert all(level.keyframe.is_tiled for level in levels)
        assert max(levels[-1].shape) <= 1024 < max(levels[-2].shape if len(levels) > 1 else (1025,))
        for level in levels:
            assert np.array_equal(level.asarray(), values)
            values = values[::2, ::2]


def test_measured_values_are_averaged(tmp_path):
    values = random_map((1100, 1027), 256)
    with tifffile.TiffFile(write(tmp_path / "a.ome.tif", values, mean_of_four, palette=None)) as tiff:
        first, second = (level.asarray().astype(float) for level in tiff.series[0].levels)
    assert np.array_equal(first, values)
    blocks = [first[y : y + 2, x : x + 2] for y in (0, 500, 1098) for x in (0, 333, 1024)]
    where = [(y // 2, x // 2) for y in (0, 500, 1098) for x in (0, 333, 1024)]
    assert all(abs(second[place] - block.mean()) <= 0.5 for place, block in zip(where, blocks) if place[1] != 166)
    assert second[3, 513] == pytest.approx(first[6:8, 1026].mean(), abs=0.5)  # half a column is left at the edge


def test_colours_and_resolution_are_in_the_file(tmp_path):
    path = write(tmp_path / "a.ome.tif", random_map((40, 30)))
    with Image.open(path) as picture:
        assert picture.mode == "P" and np.array_equal(picture, random_map((40, 30)))
        assert np.asarray(picture.convert("RGB"))[3, 4].tolist() == PALETTE[random_map((40, 30))[3, 4]]
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        x, y = (page.tags[name].value for name in ("XResolution", "YResolution"))
        assert (1e4 * x[1] / x[0], 1e4 * y[1] / y[0]) == pytest.approx((0.25, 0.5)) and page.resolutionunit == 3
        root = ElementTree.fromstring(tiff.ome_metadata)
    pixels = root.find(".//{*}Pixels").attrib
    assert [pixels[f"PhysicalSize{key}"] for key in ("X", "XUnit", "Y", "YUnit")] == ["0.25", "µm", "0.5", "µm"]
    assert root.find(".//{*}Channel").attrib["Name"] == root.find("{*}Image").attrib["Name"]
    assert root.find("{*}Image").attrib["Name"] == 'slide "7" & co'


def test_the_same_map_gives_the_same_bytes(tmp_path):
    values = random_map((1500, 1100))
    one, two = (write(tmp_path / f"{height}.ome.tif", values, height=height).read_bytes() for height in (64, 999))
    assert one == two
