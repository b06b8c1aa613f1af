import numpy as np
import pytest
import tifffile

from scripts.slides.reading.pixel_size import micrometres, number, openslide_pixel_size
from scripts.slides.reading.slide import Slide

WHITE = np.full((300, 280, 3), 240, np.uint8)
TILES = {"tile": (256, 256), "photometric": "rgb"}
IN_CM = {"resolution": (1e4 / 0.25, 1e4 / 0.3), "resolutionunit": "CENTIMETER"}


def ome(path, x, unit_x, y=None, unit_y=None, **options):
    size = {"PhysicalSizeX": x, "PhysicalSizeXUnit": unit_x}
    if y is not None:
        size |= {"PhysicalSizeY": y, "PhysicalSizeYUnit": unit_y or unit_x}
    tifffile.imwrite(path, WHITE, metadata={"axes": "YXS", **size}, **TILES, **options)
    return path


@pytest.mark.parametrize("backends", ["openslide,tifffile", "openslide", "tifffile"])
@pytest.mark.parametrize(
    ("value", "unit"),
    [
        (5e-7, "m"),
        (5e-6, "dm"),
        (5e-5, "cm"),
        (5e-4, "mm"),
        (0.5, "µm"),
        (0.5, "\N{GREEK SMALL LETTER MU}m"),
        (0.5, "um"),
        (500, "nm"),
        (500000, "pm"),
        (5000, "Å"),
        (5000, "\N{ANGSTROM SIGN}"),
        (0.5 / 25400, "in"),
        (0.5 / 304800, "ft"),
        (0.5 / 914400, "yd"),
        (0.5 / 25.4, "thou"),
        (0.5 * 72 / 25400, "pt"),
        (0.5 * 12 / 25400, "li"),
        (5e-10, "km"),
    ],
)
def test_the_size_in_ome_xml_is_read_in_every_unit(tmp_path, value, unit, backends):
    slide = Slide(ome(tmp_path / "a.ome.tif", value, unit, value), backends=backends)
    assert slide.mpp == pytest.approx((0.5, 0.5), rel=1e-6)
    assert (slide.mpp_source, slide.image.mpp_source) == ("file", "OME-XML")


@pytest.mark.parametrize("dpi", [72, 96, 300])
def test_ome_xml_rules_over_a_resolution_for_printing(tmp_path, dpi):
    printing = {"resolution": (dpi, dpi), "resolutionunit": "INCH"}
    assert Slide(ome(tmp_path / "a.ome.tif", 0.5, "µm", 0.5, **printing)).mpp == (0.5, 0.5)
    assert Slide(ome(tmp_path / "b.ome.tif", 0.5, "µm", **IN_CM)).mpp == (0.5, 0.5)
    with pytest.raises(ValueError, match="must state its micrometres per pixel, got none"):
        Slide(ome(tmp_path / "c.ome.tif", 1, "pixel", 1, **printing))


def test_each_axis_has_its_size(tmp_path):
    assert Slide(ome(tmp_path / "a.ome.tif", 0.5, "µm", 250, "nm")).mpp == pytest.approx((0.25, 0.5))
    tifffile.imwrite(tmp_path / "b.tif", WHITE, **TILES, **IN_CM)
    assert Slide(tmp_path / "b.tif").mpp == pytest.approx((0.3, 0.25), rel=1e-4)


@pytest.mark.parametrize("unit", ["pixel", "reference frame", "s", "", "furlong"])
def test_what_is_no_unit_of_length_is_passed_over(tmp_path, unit):
    assert micrometres(unit) is None
    slide = Slide(ome(tmp_path / "a.ome.tif", 0.5, unit, **IN_CM))
    assert (slide.image.mpp_source, slide.mpp[1]) == ("TIFF resolution", pytest.approx(0.25, rel=1e-4))


@pytest.mark.parametrize(
    ("per_unit", "unit"),
    [
        (2, "micron"),
        (2, "um"),
        (2, "\\u00B5m"),
        (2, "Microns"),
        (2000, "mm"),
        (20000, "cm"),
        (0.002, "nm"),
        (50800, "inch"),
    ],
)
def test_imagej_s_unit_is_read(tmp_path, per_unit, unit):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, WHITE, imagej=True, resolution=(per_unit, per_unit), metadata={"unit": unit})
    slide = Slide(path)
    assert slide.mpp == pytest.approx((0.5, 0.5), rel=1e-4) and slide.image.mpp_source == "ImageJ"


def test_imagej_s_pixels_are_no_unit(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", WHITE, imagej=True, resolution=(2, 2), metadata={"unit": "pixel"})
    with pytest.raises(ValueError, match="must state its micrometres per pixel, got none"):
        Slide(tmp_path / "a.tif")


def test_aperio_s_size_is_read_by_tifffile_too(tmp_path):
    description = "Aperio Image Library v11\n280x300 (256x256) |AppMag = 40|MPP = 0.2527"
    tifffile.imwrite(tmp_path / "a.svs", WHITE, description=description, metadata=None, **TILES)
    for backend in ("openslide", "tifffile"):
        assert Slide(tmp_path / "a.svs", backends=[backend]).mpp == pytest.approx((0.2527, 0.2527))


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"openslide.mpp-x": "0.5", "openslide.mpp-y": "0.25"}, ((0.25, 0.5), "OpenSlide")),
        ({"openslide.mpp-x": "0,5", "openslide.mpp-y": "0,25"}, ((0.25, 0.5), "OpenSlide")),
        ({"aperio.MPP": "0.25"}, ((0.25, 0.25), "Aperio")),
        ({"openslide.mpp-x": "352", "openslide.mpp-y": "352"}, (None, None)),
        (
            {"tiff.XResolution": "20000", "tiff.YResolution": "40000", "tiff.ResolutionUnit": "centimeter"},
            ((0.25, 0.5), "TIFF resolution"),
        ),
        ({"tiff.XResolution": "2", "tiff.YResolution": "4", "tiff.ResolutionUnit": "none"}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_openslide_s_properties(properties, expected):
    assert openslide_pixel_size(properties) == expected


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "", "half", None])
def test_what_is_no_size_is_none(text):
    assert number(text) is None


def test_an_argument_overrules_only_if_asked(tmp_path, caplog):
    tifffile.imwrite(tmp_path / "a.tif", WHITE, **TILES, **IN_CM)
    slide = Slide(tmp_path / "a.tif", 0.5)
    assert (slide.mpp_source, slide.mpp[1]) == ("file", pytest.approx(0.25, rel=1e-4))
    assert "`mpp` 0.5 is ignored. If the file is wrong, add --overrule-mpp." in caplog.text
    slide = Slide(tmp_path / "a.tif", 0.5, overrule_mpp=True)
    assert (slide.mpp, slide.mpp_source, slide.image.mpp_source) == ((0.5, 0.5), "argument", "argument")
    assert Slide(tmp_path / "a.tif", overrule_mpp=True).mpp_source == "file"
