import math
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from synthetic_slide import write_slide

from scripts.slides.reading.slide import Slide, SlideView, thumbnail_view

READERS = ["openslide", "tifffile"]


def random_image(shape=(600, 700), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def halved(image):
    height, width = image.shape[0] // 2, image.shape[1] // 2
    four = image[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
    return four.mean(axis=(1, 3)).round().astype(np.uint8)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory):
    """A slide with three levels, 0.25 micrometres per pixel."""
    return write_slide(tmp_path_factory.mktemp("slides") / "a.tif", random_image(), 0.25, levels=3)


@pytest.mark.parametrize("backend", READERS)
def test_levels_resolution_and_pixels_are_those_of_the_file(pyramid, backend):
    slide = Slide(pyramid, backends=[backend])
    assert slide.backend == backend and slide.mpp_source == "file"
    assert slide.mpp == pytest.approx((0.25, 0.25), rel=1e-4)
    assert slide.level_sizes == [(600, 700), (300, 350), (150, 175)]
    assert slide.level_scales == [(1, 1), (2, 2), (4, 4)]
    image = random_image()
    assert np.array_equal(slide.read(0, 250, 131, 40, 300), image[250:290, 131:431])
    assert np.array_equal(slide.read(1, 99, 3, 200, 256), halved(image)[99:299, 3:259])
    assert (slide.read(0, 590, 690, 20, 20)[10:] == 255).all()


@pytest.mark.parametrize("backend", READERS)
@pytest.mark.parametrize(
    ("mpp", "level", "ratio"), [(0.25, 0, 1), (0.5, 1, 1), (1.01, 2, 1), (0.75, 1, 1.5), (2.0, 2, 2)]
)
def test_views_take_the_nearest_finer_level(pyramid, backend, mpp, level, ratio):
    view = SlideView(Slide(pyramid, backends=[backend]), mpp)
    assert (view.level, view.ratio) == (level, pytest.approx((ratio, ratio), rel=1e-4))
    scale = ratio * 2**level
    assert view.scale == pytest.approx((scale, scale), rel=1e-4)
    assert view.mpp == pytest.approx((scale * 0.25,) * 2, rel=1e-4)
    assert view.shape == (math.floor(600 / scale + 0.5), math.floor(700 / scale + 0.5))
    assert view.read().shape == (*view.shape, 3)


def test_whole_ratios_average_pixels(tmp_path):
    image = random_image((301, 403))
    slide = Slide(write_slide(tmp_path / "a.tif", image, 0.499))
    view = SlideView(slide, 1.0)  # within 2 % of twice
    assert view.ratio == (2, 2) and view.mpp == pytest.approx((0.998, 0.998), rel=1e-4)
    even = np.pad(image, ((0, 1), (0, 1), (0, 0)), mode="edge")
    assert np.abs(view.read() - even.reshape(151, 2, 202, 2, 3).mean(axis=(1, 3))).max() <= 0.51


def test_other_ratios_keep_gradients(tmp_path):
    image = np.broadcast_to(np.linspace(0, 255, 700).round()[None, :, None], (600, 700, 3)).astype(np.uint8)
    view = SlideView(Slide(write_slide(tmp_path / "a.tif", image, 0.3)), 0.5)
    centres = (np.arange(view.shape[1]) + 0.5) * view.scale[1] - 0.5
    assert view.shape == (360, 420) and view.scale == pytest.approx((5 / 3, 5 / 3), rel=1e-3)
    assert np.abs(view.read() - centres[None, :, None] * 255 / 699).max() <= 1.1


def test_coarse_slides_are_enlarged_with_a_warning(tmp_path, caplog):
    view = SlideView(Slide(write_slide(tmp_path / "a.tif", np.full((60, 70, 3), 9, np.uint8), 1.0)), 0.5)
    assert view.shape == (120, 140) and (view.read() == 9).all()
    assert "a.tif has 1 um per pixel, coarser than 0.5: it is upsampled." in caplog.text


def test_regions_are_parts_of_the_whole(pyramid):
    slide = Slide(pyramid)
    whole = SlideView(slide, 0.5).read()
    view = SlideView(slide, 0.5, (101, 40, 200, 333))
    assert view.origin == (100, 40) and view.shape == (101, 167)
    assert np.array_equal(view.read(), whole[50:151, 20:187])
    with pytest.raises(ValueError, match="`region` must be top, left, height, width within"):
        SlideView(slide, 0.5, (600, 0, 10, 10))


def test_thumbnails_are_no_larger_than_asked(pyramid):
    slide = Slide(pyramid)
    assert max(thumbnail_view(slide, 0.25, 100).shape) == 100
    assert thumbnail_view(slide, 1.0, 1000).shape == (150, 175)


@pytest.mark.parametrize("backend", READERS)
def test_a_resolution_for_printing_is_none(tmp_path, backend):
    path = tmp_path / "a.tif"
    options = {"resolution": (72, 72), "resolutionunit": "INCH"}
    write_slide(path, random_image((300, 300)), None, **options)
    with pytest.raises(ValueError, match="must state its micrometres per pixel, got none; pass them with --mpp"):
        Slide(path, backends=[backend])
    assert Slide(path, 0.5, [backend]).mpp == (0.5, 0.5)
    assert Slide(path, 0.5, [backend]).mpp_source == "argument"


def test_the_file_s_resolution_holds(pyramid, caplog):
    assert Slide(pyramid, 0.5).mpp == pytest.approx((0.25, 0.25), rel=1e-4)
    assert "a.tif states 0.25 um per pixel: `mpp` 0.5 is ignored." in caplog.text


@pytest.mark.parametrize("mpp", [0, -1, 300, float("nan")])
def test_refuses_resolutions_that_cannot_be(tmp_path, mpp):
    path = write_slide(tmp_path / "a.tif", random_image((300, 300)), None)
    with pytest.raises(ValueError, match="`mpp` must state between 0.02 and 20.0 micrometres per pixel"):
        Slide(path, mpp)


def test_tifffile_takes_no_other_page_for_a_level(tmp_path):
    path, image = tmp_path / "a.tif", random_image((512, 512))
    with tifffile.TiffWriter(path) as tiff:
        settings = {"photometric": "rgb", "resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER", "metadata": None}
        tiff.write(image, tile=(256, 256), **settings)
        tiff.write(image[:100, :400], **settings)  # a label
        tiff.write(halved(image), tile=(256, 256), subfiletype=1, **settings)
    sizes = Slide(path, backends=["tifffile"]).level_sizes
    assert sizes[0] == (512, 512) and set(sizes) <= {(512, 512), (256, 256)}


def test_the_next_reader_takes_what_the_first_cannot_open(tmp_path):
    path = tmp_path / "a.tif"  # in strips: no slide to OpenSlide
    tifffile.imwrite(
        path, random_image((300, 200)), photometric="rgb", resolution=(1e4, 1e4), resolutionunit="CENTIMETER"
    )
    slide = Slide(path)
    assert slide.backend == "tifffile" and np.array_equal(
        slide.read(0, 5, 6, 70, 80), random_image((300, 200))[5:75, 6:86]
    )


@pytest.mark.parametrize("content", [b"", b"no slide", b"II*\0\x08\0\0\0"], ids=["empty", "text", "header"])
def test_files_that_are_no_slides_are_named_with_every_reader_s_reason(tmp_path, content):
    path = tmp_path / "a.svs"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a.svs must be a readable slide; openslide: .*; cucim: .*; tifffile: "):
        Slide(path, 0.5)


@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_truncated_slides_are_named(tmp_path, share):
    whole = write_slide(tmp_path / "whole.tif", random_image(), 0.25, levels=1).read_bytes()
    path = tmp_path / "cut.tif"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match="cut.tif must be"):
        SlideView(Slide(path, 0.25), 0.25).read()


def test_tiles_beyond_the_end_of_a_truncated_file_are_not_white(tmp_path):
    whole = write_slide(tmp_path / "whole.tif", random_image(), 0.25, levels=1).read_bytes()
    path = tmp_path / "cut.tif"
    path.write_bytes(whole[: len(whole) // 2])
    slide = Slide(path, backends=["tifffile"])
    height, width = slide.level_sizes[0]
    with pytest.raises(ValueError, match="damaged at row .*: the file ends before its pixels do"):
        slide.read(0, height - 1, width - 1, 1, 1)


def test_a_damaged_place_is_named(pyramid):
    slide = Slide(pyramid)

    def broken(*region):
        raise OSError("cannot decode")

    slide._read = broken
    with pytest.raises(ValueError, match="its level 0 is damaged at row 5, column 6: cannot decode"):
        slide.read(0, 5, 6, 1, 1)


def test_refuses_missing_files_and_unknown_readers(tmp_path, pyramid):
    with pytest.raises(FileNotFoundError, match="must be a slide file; it does not exist"):
        Slide(tmp_path / "a.svs")
    with pytest.raises(ValueError, match=r"`backends` must be some of .*, got \['pil'\]"):
        Slide(pyramid, backends=["pil"])


@pytest.mark.realdata
def test_real_slides_are_read_alike_by_both_readers():
    folder = os.environ.get("REALDATA_DIR")
    if folder is None:
        pytest.skip("REALDATA_DIR names no folder with real H&E images")
    for path in sorted((Path(folder) / "slides").glob("*.svs")):
        one, two = (Slide(path, 0.5, [backend]) for backend in READERS)
        assert one.level_sizes == two.level_sizes
        difference = one.read(0, 700, 600, 300, 400).astype(int) - two.read(0, 700, 600, 300, 400)
        assert np.abs(difference).mean() < 1
