"""Every colour model is read as an independent reader shows it, or refused, whichever backend is asked."""

import itertools

import numpy as np
import pytest
import tifffile
from PIL import Image

from scripts.slides.reading.colours import on_background, ycbcr_to_rgb
from scripts.slides.reading.slide import Slide

SIDE = 512
BLOTS = np.kron(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8), np.ones((32, 32, 1), np.uint8))
PICTURE = Image.fromarray(BLOTS)
BACKENDS = ["openslide,cucim,tifffile", "tifffile", "openslide"]
TILES, STRIPS = {"tile": (256, 256)}, {"rowsperstrip": 100}
COLORMAP = np.random.default_rng(1).integers(0, 65536, (3, 256)).astype(np.uint16)
ALPHA = np.kron(np.array([[0, 128], [255, 40]], np.uint8), np.ones((256, 256), np.uint8))


def pixels_of(path, backends="openslide,cucim,tifffile"):
    return Slide(path, 0.5, backends).read(0, 0, 0, SIDE, SIDE)


def blended(colours, premultiplied):
    share = ALPHA[..., None] / 255.0
    return colours + 255 * (1 - share) if premultiplied else colours * share + 255 * (1 - share)


CMYK = np.asarray(PICTURE.convert("CMYK"))
FORMATS = {
    "RGB": (BLOTS, {"photometric": "rgb"}, BLOTS, 0),
    "RGB in planes": (np.moveaxis(BLOTS, 2, 0), {"photometric": "rgb", "planarconfig": "separate"}, BLOTS, 0),
    "greyscale": (BLOTS[..., 0], {"photometric": "minisblack"}, BLOTS[..., :1].repeat(3, 2), 0),
    "white is zero": (BLOTS[..., 0], {"photometric": "miniswhite"}, 255 - BLOTS[..., :1].repeat(3, 2), 0),
    "palette": (BLOTS[..., 0], {"photometric": "palette", "colormap": COLORMAP}, (COLORMAP.T // 256)[BLOTS[..., 0]], 0),
    "CMYK": (CMYK, {"photometric": "separated"}, np.asarray(PICTURE.convert("CMYK").convert("RGB")), 0),
    "YCbCr": (
        np.asarray(PICTURE.convert("YCbCr")),
        {"photometric": "ycbcr", "subsampling": (1, 1)},
        np.asarray(PICTURE.convert("YCbCr").convert("RGB")),
        1,
    ),
    "RGB and more": (np.dstack([BLOTS, ALPHA]), {"photometric": "rgb", "extrasamples": ["unspecified"]}, BLOTS, 0),
    "transparent": (
        np.dstack([BLOTS, ALPHA]),
        {"photometric": "rgb", "extrasamples": ["unassalpha"]},
        blended(BLOTS, False),
        1,
    ),
    "premultiplied": (
        np.dstack([(BLOTS * (ALPHA[..., None] / 255.0)).astype(np.uint8), ALPHA]),
        {"photometric": "rgb", "extrasamples": ["assocalpha"]},
        blended((BLOTS * (ALPHA[..., None] / 255.0)).astype(np.uint8), True),
        1,
    ),
}


@pytest.mark.parametrize("layout", [TILES, STRIPS, {}], ids=["tiles", "strips", "one strip"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("name", FORMATS)
def test_colours_are_those_of_the_picture(tmp_path, name, compression, layout):
    content, options, expected, tolerance = FORMATS[name]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, content, compression=compression, **options, **layout)
    for backends in BACKENDS:
        if backends == "openslide":  # shows them rightly, or is not taken
            try:
                found = pixels_of(path, backends)
            except ValueError:
                continue
        else:
            found = pixels_of(path, backends)
        assert np.abs(found - np.asarray(expected, dtype=float)).max() <= tolerance, backends


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L", "YCbCr"])
def test_colours_in_jpeg_are_those_that_pillow_reads(tmp_path, mode):
    smooth = PICTURE.resize((16, 16)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    smooth.convert(mode).save(tmp_path / "a.tif", compression="jpeg", quality=95)
    with Image.open(tmp_path / "a.tif") as written:
        expected = np.asarray(written.convert("RGB")).astype(int)
    assert np.abs(pixels_of(tmp_path / "a.tif") - expected).mean() < 1


def test_subsampled_jpeg_keeps_its_colours(tmp_path):
    smooth = np.asarray(PICTURE.resize((4, 4)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    options = {"photometric": "rgb", "subsampling": (2, 2), "compression": "jpeg"}
    tifffile.imwrite(tmp_path / "a.tif", smooth, **TILES, **options)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert tiff.pages[0].photometric.name == "YCBCR" and tiff.pages[0].is_subsampled
    for backends in BACKENDS:
        assert np.abs(pixels_of(tmp_path / "a.tif", backends).astype(int) - smooth).mean() < 2


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_three_pages_are_combined_by_their_names(tmp_path, order):
    names = [["Red", "green", " BLUE channel"][at] for at in order]
    path = tmp_path / "a.ome.tif"
    metadata = {"axes": "CYX", "Channel": {"Name": names}}
    tifffile.imwrite(path, np.moveaxis(BLOTS[..., order], 2, 0), photometric="minisblack", metadata=metadata, **TILES)
    slide = Slide(path, 0.5)
    assert np.array_equal(slide.read(0, 0, 0, SIDE, SIDE), BLOTS)
    assert slide.backend == "tifffile" and slide.image.planes == 3
    with pytest.raises(ValueError, match="use the backend tifffile"):
        Slide(path, 0.5, "openslide")


def test_three_channels_without_names_are_taken_for_rgb_with_a_warning(tmp_path, caplog):
    planes = np.moveaxis(BLOTS, 2, 0)
    tifffile.imwrite(tmp_path / "a.ome.tif", planes, photometric="minisblack", metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "b.tif", BLOTS, photometric="minisblack", planarconfig="contig", **TILES)
    tifffile.imwrite(tmp_path / "c.tif", planes, imagej=True, metadata={"axes": "CYX"})
    for name in ("a.ome.tif", "b.tif", "c.tif"):
        assert np.array_equal(pixels_of(tmp_path / name), BLOTS)
        assert f"{name}: its three channels have no names and are taken for red, green and blue." in caplog.text


def test_planes_of_a_pyramid_in_subifds_are_combined_on_each_level(tmp_path):
    planes = np.moveaxis(BLOTS, 2, 0)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tiff:
        options = {"photometric": "minisblack", **TILES}
        metadata = {"axes": "CYX", "Channel": {"Name": ["B", "G", "R"]}}
        tiff.write(planes[::-1], subifds=1, metadata=metadata, **options)
        tiff.write(planes[::-1, ::2, ::2], subfiletype=1, **options)
    slide = Slide(tmp_path / "a.ome.tif", 0.5)
    assert slide.level_sizes == [(512, 512), (256, 256)]
    assert np.array_equal(slide.read(1, 3, 5, 100, 200), BLOTS[::2, ::2][3:103, 5:205])


@pytest.mark.parametrize("backends", BACKENDS)
@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        (BLOTS.astype(np.uint16) * 257, {"photometric": "rgb"}, "samples must have 8 bits, got 16"),
        (BLOTS.astype(np.float32), {"photometric": "rgb"}, "samples must have 8 bits, got 32"),
        (BLOTS, {"photometric": "cielab"}, "colours must be RGB or convertible to it, got CIELab"),
        (np.zeros((5, SIDE, SIDE), np.uint8), {"metadata": {"axes": "ZYX"}}, "got 5 focal planes"),
        (np.zeros((3, SIDE, SIDE), np.uint8), {"metadata": {"axes": "ZYX"}}, "got 3 focal planes"),
        (np.zeros((2, SIDE, SIDE), np.uint8), {"metadata": {"axes": "TYX"}}, "got 2 time points"),
        (np.zeros((4, SIDE, SIDE), np.uint8), {"metadata": {"axes": "CYX"}}, "got 4 channels"),
        (np.stack([BLOTS, BLOTS]), {"photometric": "rgb"}, "got 2 pages of one size"),
        (np.stack([BLOTS] * 3), {"photometric": "rgb"}, "got 3 pages of one size"),
        (np.zeros((3, SIDE, SIDE), np.uint8), {}, "got three pages that do not say so"),
        (
            np.zeros((3, SIDE, SIDE), np.uint8),
            {"metadata": {"axes": "CYX", "Channel": {"Name": ["DAPI", "FITC", "Texas Red"]}}},
            "got \\['DAPI', 'FITC', 'Texas Red'\\]",
        ),
    ],
)
def test_what_is_no_picture_in_colours_is_refused_by_every_backend(tmp_path, backends, content, options, reason):
    options = {"photometric": "minisblack", **options}
    ome = {"axes"} <= set(options.get("metadata", {}))
    path = tmp_path / ("a.ome.tif" if ome else "a.tif")
    tifffile.imwrite(path, content, **options, **TILES)
    with pytest.raises(ValueError, match=reason):
        Slide(path, 0.5, backends)


def test_what_was_not_scanned_has_the_colour_of_the_background():
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :, 3] = 0, 255, 128
    pixels[0, 1, :3] = 7, 8, 9
    assert on_background(pixels).tolist() == [[[255] * 3, [7, 8, 9], [127] * 3]]
    assert on_background(pixels, (10, 20, 30)).tolist() == [[[10, 20, 30], [7, 8, 9], [5, 10, 15]]]


def test_ycbcr_of_grey_is_grey():
    grey = np.array([[[0, 128, 128], [77, 128, 128], [255, 128, 128]]], np.uint8)
    assert ycbcr_to_rgb(grey, (0.299, 0.587, 0.114)).tolist() == [[[0] * 3, [77] * 3, [255] * 3]]
