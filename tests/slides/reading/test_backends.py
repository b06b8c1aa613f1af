"""Which backend reads a slide, and what belongs to it."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from scripts.slides.reading import kept_pixels
from scripts.slides.reading.backends import bounds_of, levels_of_image
from scripts.slides.reading.files import is_slide
from scripts.slides.reading.slide import Slide, SlideView

RNG = np.random.default_rng(0)
BLOTS = np.kron(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8), np.ones((32, 32, 1), np.uint8))  # 1024 px
HALF, QUARTER = BLOTS[::2, ::2], BLOTS[::4, ::4]
RGB = {"photometric": "rgb", "tile": (256, 256), "compression": "zlib"}


def test_a_pyramid_in_subifds_is_read_by_the_backend_that_sees_it(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path) as tiff:
        size = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        tiff.write(BLOTS, subifds=2, metadata=size, **RGB)
        tiff.write(HALF, subfiletype=1, **RGB)
        tiff.write(QUARTER, subfiletype=1, **RGB)
    slide = Slide(path)
    assert (slide.backend, slide.level_sizes) == ("tifffile", [(1024, 1024), (512, 512), (256, 256)])
    assert np.array_equal(slide.read(2, 0, 0, 256, 256), QUARTER)
    assert Slide(path, backends="openslide").level_sizes == [(1024, 1024)]  # right, though slower
    assert slide.mpp == Slide(path, backends="openslide").mpp == (0.5, 0.5)


def test_of_equals_the_first_is_taken(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", BLOTS, **RGB)
    for backends in ("openslide,tifffile", "tifffile, openslide"):
        assert Slide(tmp_path / "a.tif", 0.5, backends).backend == backends.split(",")[0]
    with pytest.raises(ValueError, match=r"`backends` must be some of .*, got \['nonsense'\]"):
        Slide(tmp_path / "a.tif", 0.5, "nonsense")


PHOTOGRAPH = np.full((256, 256, 3), (40, 90, 30), np.uint8)


@pytest.mark.parametrize("backends", ["openslide", "tifffile", "openslide,tifffile"])
@pytest.mark.parametrize(
    "options",
    [
        {"subfiletype": 9, "extratags": []},
        {"subfiletype": 1, "extratags": [(285, "s", 0, "label", True)]},
        {"subfiletype": 1, "description": "macro 256x256"},
        {"subfiletype": 1},  # only its pixels tell
    ],
    ids=["Aperio's kind", "by name", "by description", "by pixels"],
)
def test_photographs_are_no_levels(tmp_path, backends, options):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(BLOTS, metadata=None, **RGB)
        tiff.write(HALF, subfiletype=1, metadata=None, **RGB)
        tiff.write(PHOTOGRAPH, metadata=None, **RGB, **options)
    slide = Slide(path, 0.5, backends)
    assert slide.level_sizes == [(1024, 1024), (512, 512)]
    assert np.array_equal(slide.read(1, 0, 0, 512, 512), HALF)


def test_a_macro_that_comes_first_is_not_the_slide(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tiff:
        tiff.write(
            PHOTOGRAPH, metadata={"axes": "YXS", "Name": "macro", "PhysicalSizeX": 10, "PhysicalSizeY": 10}, **RGB
        )
        tiff.write(BLOTS, metadata={"axes": "YXS", "Name": "scan", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}, **RGB)
    slide = Slide(tmp_path / "a.ome.tif")
    assert (slide.backend, slide.level_sizes, slide.mpp) == ("tifffile", [(1024, 1024)], (0.5, 0.5))
    with pytest.raises(ValueError, match="it sees a picture of 256x256 pixels, not the slide"):
        Slide(tmp_path / "a.ome.tif", backends="openslide")


def test_a_slide_with_the_name_of_a_label_is_a_slide(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", BLOTS, metadata={"axes": "YXS", "Name": "label free"}, **RGB)
    assert Slide(tmp_path / "a.ome.tif", 0.5).level_sizes == [(1024, 1024)]


def test_a_damaged_level_is_named_when_it_is_read(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(BLOTS, metadata=None, **RGB)
        tiff.write(HALF, subfiletype=1, metadata=None, **RGB)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        start = tiff.pages[1].dataoffsets[0]
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[start : start + 50] = bytes(50)
    (tmp_path / "a.tif").write_bytes(content)
    slide = Slide(tmp_path / "a.tif", 0.5, "tifffile")
    assert np.array_equal(slide.read(0, 0, 0, 100, 100), BLOTS[:100, :100])
    with pytest.raises(ValueError, match="its level 1 is damaged at row 0, column 0"):
        slide.read(1, 0, 0, 100, 100)


def test_levels_have_the_proportions_of_the_first():
    sizes = [(1000, 2000), (500, 1000), (300, 400), (125, 250), (0, 0)]
    assert levels_of_image(sizes, frozenset()) == [0, 1, 3]
    assert levels_of_image(sizes, frozenset({(125, 250)})) == [0, 1]


# --- bounds


class Scan:
    """OpenSlide's view of a scanner's file: the scan lies at (300, 200) of 1400 x 1500 pixels."""

    PLACE = (300, 200)  # x and y
    properties = {
        "openslide.vendor": "mirax",
        "openslide.mpp-x": "0.25",
        "openslide.mpp-y": "0.25",
        "openslide.bounds-x": "300",
        "openslide.bounds-y": "200",
        "openslide.bounds-width": "1024",
        "openslide.bounds-height": "1000",
        "openslide.background-color": "F0F1F2",
    }
    level_downsamples = (1.0, 2.0, 4.0)
    level_dimensions = ((1500, 1400), (750, 700), (375, 350))
    level_count = 3
    dimensions = level_dimensions[0]

    def __init__(self, filename):
        self._filename = filename
        canvas = np.zeros((1400, 1500, 4), np.uint8)  # transparent where nothing was scanned
        canvas[200:1200, 300:1324] = np.dstack([BLOTS[:1000], np.full((1000, 1024), 255, np.uint8)])
        canvas[400:420, 500:520] = 0
        self.canvas = canvas

    def read_region(self, location, level, size):
        step = int(self.level_downsamples[level])
        picture = Image.new("RGBA", size)
        picture.paste(Image.fromarray(self.canvas[location[1] :: step, location[0] :: step][: size[1], : size[0]]))
        return picture


@pytest.fixture()
def scan(tmp_path, monkeypatch):
    monkeypatch.setattr("monai.data.wsi_reader.OpenSlide", Scan)
    path = tmp_path / "a.mrxs"
    path.touch()
    return Slide(path)


def test_coordinates_start_where_the_scan_does(scan):
    assert scan.image.bounds == (200, 300, 1000, 1024)
    assert scan.level_sizes == [(1000, 1024), (500, 512), (250, 256)] and scan.level_scales[1] == (2.0, 2.0)
    expected = BLOTS[:1000].copy()
    expected[200:220, 200:220] = (240, 241, 242)
    assert np.array_equal(scan.read(0, 0, 0, 1000, 1024), expected)
    assert np.array_equal(scan.read(1, 30, 40, 60, 70), expected[60:180:2, 80:220:2])
    outside = scan.read(0, 995, 1020, 10, 10)  # more was there to read, but it lies outside
    assert np.array_equal(outside[:5, :4], expected[995:, 1020:])
    assert (outside[5:] == (240, 241, 242)).all() and (outside[:, 4:] == (240, 241, 242)).all()


def test_views_and_regions_start_at_the_bounds_too(scan):
    assert SlideView(scan, 0.5).shape == (500, 512)
    view = SlideView(scan, 0.25, (100, 50, 40, 30))
    assert view.origin == (100, 50) and np.array_equal(view.read(), BLOTS[100:140, 50:80])


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((10, 20, 30, 40), (20, 10, 40, 30)),
        ((0, 0, 200, 100), None),
        ((0, 0, 500, 500), None),
        ((150, 50, 500, 500), (50, 150, 50, 50)),
        ((300, 0, 10, 10), None),
        (("a", 0, 10, 10), None),
    ],
)
def test_bounds_lie_in_the_image(bounds, expected):
    names = ("x", "y", "width", "height")
    properties = {f"openslide.bounds-{name}": str(value) for name, value in zip(names, bounds, strict=True)}
    assert bounds_of(properties, (100, 200)) == expected
    assert bounds_of({}, (100, 200)) is None


# --- units of decoding


def count_decoding(monkeypatch):
    """The indices of all tiles and strips that tifffile decodes from now on."""
    decode, counts = tifffile.TiffPage.decode.func, []

    def counting(page):
        return lambda data, index, **options: (counts.append(index), decode(page)(data, index, **options))[1]

    monkeypatch.setattr(tifffile.TiffPage, "decode", property(counting))
    return counts


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zlib", "rowsperstrip": 2048},
        {"compression": "zlib", "rowsperstrip": 100},
        {"compression": "zlib", "tile": (2048, 2048)},
        {"rowsperstrip": 2048},
    ],
    ids=["one strip", "strips", "one tile", "uncompressed"],
)
def test_large_units_are_decoded_once(tmp_path, monkeypatch, options, in_memory):
    image = np.tile(BLOTS, (2, 2, 1))[:2000, :1900]
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", **options)
    if not in_memory:
        monkeypatch.setattr(kept_pixels, "LARGEST_IN_MEMORY", 0)
    counts = count_decoding(monkeypatch)
    view = SlideView(Slide(tmp_path / "a.tif", 1.0), 1.0)
    assert np.array_equal(view.read(), image) and np.array_equal(view.read(), image)
    assert len(counts) == len(set(counts))
    side = options.get("rowsperstrip", 2048)
    unit = 3 * (2048 * 2048 if "tile" in options else min(side, 2000) * 1900)
    whole = 3 * 2000 * 1900
    expected = 2 * min(unit, whole) + whole * in_memory if "compression" in options else 0
    assert view.slide.image.held_bytes == expected and bool(counts) == bool(expected)


def test_no_room_for_decoded_pixels_is_said(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", np.tile(BLOTS, (2, 2, 1)), photometric="rgb", compression="zlib")
    monkeypatch.setattr(kept_pixels, "LARGEST_IN_MEMORY", 0)
    monkeypatch.setattr(kept_pixels.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    with pytest.raises(ValueError, match="temporary file of 0.0126 GB, but .* set TMPDIR to a folder with room"):
        Slide(tmp_path / "a.tif", 1.0)


def test_large_tiffs_in_strips_are_slides(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((10, 4000, 3), np.uint8), photometric="rgb", compression="zlib")
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((10, 3000, 3), np.uint8), photometric="rgb", compression="zlib")
    assert is_slide(tmp_path / "a.tif") and not is_slide(tmp_path / "b.tif")
