"""Slides as scanners, archives and people leave them."""

import json
import logging
import re

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from some_classes import some_classes
from synthetic_slide import write_slide
from torch import nn

from scripts.errors import BundleError
from scripts.slides.reading.slide import Slide, thumbnail_view
from scripts.slides.segmenting.blending import Segmenter
from scripts.slides.segmenting.engine import SlideEngine
from scripts.slides.segmenting.run import segment_slides

CLASSES = some_classes(["red", "green"])
HALF_UM = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
ONE_UM = {"resolution": (1e4, 1e4), "resolutionunit": "CENTIMETER"}
TILES = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib"}


class RedOrGreen(nn.Module):
    def forward(self, image):
        return 9 * image[:, :2]


def engine(**settings):
    segmenter = Segmenter(RedOrGreen(), CLASSES, torch.device("cpu"), 16)
    return SlideEngine(segmenter, **{"model_mpp": 4.0, "tile_px": 32, "overlap": 0, **settings})


def tissue(side=512, seed=0):
    """Pink and green blots in a disc of stained tissue on glass, (side, side, 3) uint8."""
    rng = np.random.default_rng(seed)
    blots = np.kron(rng.random((side // 32, side // 32)) < 0.5, np.ones((32, 32), bool))
    stain = np.where(blots[..., None], (210, 90, 150), (110, 170, 130)) + rng.integers(-9, 10, (side, side, 3))
    rows, columns = np.indices((side, side)) - side / 2
    glass = 243 + rng.integers(-2, 3, (side, side, 3))
    return np.where((np.hypot(rows, columns) < side / 3)[..., None], stain, glass).astype(np.uint8)


PIXELS = tissue()


def areas(folder):
    """Area in mm² of each class of a slide's results."""
    return {one["class"]: one["area_mm2"] for one in json.loads((folder / "areas.json").read_text())["classes"]}


def segmented(slides, output_dir, **settings):
    segment_slides(engine(), slides, output_dir, **settings)
    return {
        str(record.parent.relative_to(output_dir)): areas(record.parent) for record in output_dir.rglob("record.json")
    }


def total(found):
    return sum(found.values())


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Areas of the pixels of these tests in an ordinary slide, which are close to those of the disc."""
    folder = tmp_path_factory.mktemp("plain")
    tifffile.imwrite(folder / "plain.tif", PIXELS, **TILES, **HALF_UM)
    found = segmented(folder / "plain.tif", folder / "out")["plain"]
    assert total(found) == pytest.approx(np.pi * (512 / 3 * 0.5e-3) ** 2, rel=0.15)
    return found


def test_a_black_canvas_around_the_scan_adds_no_tissue(tmp_path):
    """Line 2: with the noise of a sensor, or tinted."""
    canvas = np.random.default_rng(0).integers(0, 4, (1536, 1536, 3)).astype(np.uint8)
    canvas[512:1024, 512:1024] = PIXELS
    tinted = canvas.copy()
    tinted[(canvas < 4).all(axis=2)] = (4, 2, 3)
    for name, image in (("alone", PIXELS), ("noisy", canvas), ("tinted", tinted)):
        tifffile.imwrite(tmp_path / f"{name}.tif", image, **TILES, **ONE_UM)
    found = segmented(tmp_path, tmp_path / "out")
    assert found["noisy"] == pytest.approx(found["alone"], rel=0.02) == found["tinted"]
    assert total(found["alone"]) > 0.05


def test_red_green_and_blue_as_three_pages_are_one_picture(tmp_path, plain):
    """Line 3."""
    metadata = {"axes": "CYX", "Channel": {"Name": ["Red", "Green", "Blue"]}}
    options = {"photometric": "minisblack", "tile": (256, 256), "metadata": metadata}
    tifffile.imwrite(tmp_path / "cyx.ome.tif", np.moveaxis(PIXELS, 2, 0), **options, **HALF_UM)
    assert segmented(tmp_path, tmp_path / "out")["cyx"] == plain


@pytest.mark.parametrize("layout", [{}, {"tile": (256, 256)}], ids=["strips", "tiles"])
def test_cmyk_is_shown_in_its_colours(tmp_path, plain, layout):
    """Line 4."""
    cmyk = np.asarray(Image.fromarray(PIXELS).convert("CMYK"))
    tifffile.imwrite(tmp_path / "a.tif", cmyk, photometric="separated", **layout, **HALF_UM)
    found = segmented(tmp_path / "a.tif", tmp_path / "out")["a"]
    assert found == pytest.approx(plain, rel=0.01)  # CMYK rounds


def test_slides_in_subfolders_are_found_and_what_is_skipped_is_named(tmp_path, plain, caplog):
    """Line 5."""
    caplog.set_level(logging.INFO)
    for name in ("top.tif", "case1/a.tif", "case2/deeper/a.tif"):
        (tmp_path / "slides" / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(tmp_path / "slides" / name, PIXELS, **TILES, **HALF_UM)
    (tmp_path / "slides" / "._top.tif").write_bytes(b"\x00\x05\x16\x07" + bytes(60))
    found = segmented(tmp_path / "slides", tmp_path / "slides" / "results")
    assert found == {name: plain for name in ("top", "case1/a", "case2/deeper/a")}
    assert "skipped hidden files: ._top.tif." in caplog.text
    segment_slides(engine(), tmp_path / "slides", tmp_path / "slides" / "results")  # the results are no slides
    assert "slide 3/3 top: already complete" in caplog.text


@pytest.mark.parametrize("kind", ["pale", "grey", "white"])
def test_a_slide_without_tissue_is_warned_of(tmp_path, kind, caplog):
    """Line 11: the option that the warning names finds it."""
    grey = np.repeat(PIXELS.mean(axis=2, keepdims=True), 3, axis=2)
    images = {"pale": 255 - (255 - PIXELS.astype(int)) * 0.08, "grey": grey, "white": np.full_like(PIXELS, 243)}
    tifffile.imwrite(tmp_path / "a.tif", images[kind].astype(np.uint8), **TILES, **HALF_UM)
    plan = engine().plan(Slide(tmp_path / "a.tif"))
    assert not plan.tissue.any()
    assert re.search(r"a.tif: only 0.00% of the slide is tissue.* lower --tissue-saturation", caplog.text)
    caplog.clear()
    share = engine(tissue_saturation=0.015).plan(Slide(tmp_path / "a.tif")).tissue.mean()
    assert (0.3 < share < 0.5) if kind == "pale" else share == 0
    assert engine(tissue_saturation=0).plan(Slide(tmp_path / "a.tif")).tissue.all()


@pytest.mark.parametrize(("side", "warned"), [(40, True), (120, False)])
def test_hardly_any_tissue_is_warned_of_too(tmp_path, side, warned, caplog):
    """Line 11: 0.2 % of the slide is less than a biopsy has."""
    image = np.full((1024, 1024, 3), 243, np.uint8)
    image[:side, :side] = (210, 90, 150)
    tifffile.imwrite(tmp_path / "a.tif", image, **TILES, **ONE_UM)
    share = engine().plan(Slide(tmp_path / "a.tif")).tissue.mean()
    assert share > 0 and ("of the slide is tissue" in caplog.text) == warned


def test_a_wrong_pixel_size_can_be_overruled(tmp_path, plain, caplog):
    """Line 13: the file says 1.27 um, 0.5 um are true."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, **TILES, resolution=(7874, 7874), resolutionunit="CENTIMETER")
    wrong = segmented(path, tmp_path / "wrong", mpp=0.5)["a"]
    assert total(wrong) == pytest.approx(total(plain) * 2.54**2, rel=0.1)
    assert "`mpp` 0.5 is ignored. If the file is wrong, add --overrule-mpp." in caplog.text
    assert segmented(path, tmp_path / "right", mpp=0.5, overrule_mpp=True)["a"] == plain
    with pytest.raises(BundleError, match="`overrule_mpp` must come with the right size, got no `mpp`; add --mpp"):
        segment_slides(engine(), path, tmp_path / "none", overrule_mpp=True)


def test_a_table_says_the_sizes_of_many(tmp_path, plain):
    """Line 13: it rules over files and ``mpp``, and names the results."""
    for name in ("wrong", "none", "right"):
        size = {"wrong": {"resolution": (7874, 7874), "resolutionunit": "CENTIMETER"}, "right": HALF_UM}.get(name, {})
        tifffile.imwrite(tmp_path / f"{name}.tif", PIXELS, **TILES, **size)
    table = "slide;mpp;name\nwrong.tif;0,5;fixed/1\nnone.tif;0.5;\nright.tif;;\n"
    (tmp_path / "slides.csv").write_text(table, encoding="utf-8-sig")
    found = segmented(tmp_path / "slides.csv", tmp_path / "out", mpp=2.0)
    assert found == {"fixed/1": plain, "none": plain, "right": plain}
    record = json.loads((tmp_path / "out" / "fixed" / "1" / "record.json").read_text())
    assert (record["settings"]["mpp_from"], record["image"]["mpp_source"]) == ("table", "table")


@pytest.mark.parametrize("printing", [{}, {"resolution": (72, 72), "resolutionunit": "INCH"}])
def test_the_pixel_size_in_ome_xml_is_read(tmp_path, plain, printing):
    """Line 14."""
    size = {"axes": "YXS", "PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 5e-4}
    size["PhysicalSizeYUnit"] = "mm"
    tifffile.imwrite(tmp_path / "a.ome.tif", PIXELS, metadata=size, **TILES, **printing)
    assert segmented(tmp_path / "a.ome.tif", tmp_path / "out")["a"] == pytest.approx(plain)


def test_one_compressed_strip_is_decoded_once_and_counted(tmp_path, monkeypatch, plain):
    """Line 15: and two by two copies have four times the tissue."""
    image = np.tile(PIXELS, (2, 2, 1))
    image = np.pad(image, ((0, 0), (0, 512), (0, 0)), constant_values=243)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", compression="zlib", rowsperstrip=1024, **HALF_UM)
    decode, decoded = tifffile.TiffPage.decode.func, []
    counting = property(lambda page: lambda *data, **options: decoded.append(1) or decode(page)(*data, **options))
    monkeypatch.setattr(tifffile.TiffPage, "decode", counting)
    found = segmented(tmp_path / "a.tif", tmp_path / "out")["a"]
    assert len(decoded) == 1
    assert total(found) == pytest.approx(4 * total(plain), rel=0.05)
    held = Slide(tmp_path / "a.tif").image.held_bytes
    assert held == 3 * image[..., 0].size * 3  # the pixels, and while decoding a strip and its colours
    enough, less = engine(budget_gb=0.1), engine(budget_gb=0.1 - held / 1e9)
    assert enough.plan(Slide(tmp_path / "a.tif")).grid.band_cells == less.band_cells < enough.band_cells
    with pytest.raises(BundleError, match="`budget_gb` must leave room for two tiles"):
        engine(budget_gb=0.01).plan(Slide(tmp_path / "a.tif"))


def test_a_pyramid_that_openslide_does_not_see_is_used(tmp_path):
    """Line 25: as QuPath writes it, in SubIFDs."""
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tiff:
        tiff.write(PIXELS, subifds=1, metadata={"axes": "YXS", "PhysicalSizeX": 2, "PhysicalSizeY": 2}, **TILES)
        tiff.write(PIXELS[::4, ::4], subfiletype=1, **TILES)
    slide = Slide(tmp_path / "a.ome.tif")
    view = thumbnail_view(slide, 8.0, 2048)
    assert (slide.backend, view.level, view.ratio) == ("tifffile", 1, (1.0, 1.0))
    assert np.array_equal(view.read(), PIXELS[::4, ::4])


def test_slides_by_pattern_list_and_commas(tmp_path, plain, monkeypatch):
    """Line 27."""
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(tmp_path / name, PIXELS, **TILES, **HALF_UM)
    (tmp_path / "list.txt").write_text("a.tif\nb.tif\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for number, slides in enumerate(["*.tif", "list.txt", "a.tif,b.tif", ["a.tif", "b.tif"]]):
        assert segmented(slides, tmp_path / f"out{number}", backends="tifffile") == {"a": plain, "b": plain}


def test_readers_and_threads_are_checked_before_the_first_slide(tmp_path):
    """Line 27."""
    with pytest.raises(BundleError, match=r"`backends` must be some of .*, got \['nonsense'\]; pass for instance"):
        segment_slides(engine(), tmp_path, tmp_path / "out", backends="nonsense")
    for threads in (0, -1, 1.5):
        with pytest.raises(BundleError, match=f"`threads` must be a whole number of at least 1, got {threads}"):
            engine(threads=threads)


def test_a_damaged_slide_in_a_subfolder_is_named_at_the_end(tmp_path, plain):
    """Line 18, for slides."""
    (tmp_path / "slides" / "case").mkdir(parents=True)
    write_slide(tmp_path / "slides" / "good.tif", PIXELS, 0.5)
    content = (tmp_path / "slides" / "good.tif").read_bytes()
    (tmp_path / "slides" / "case" / "cut.tif").write_bytes(content[: len(content) // 2])
    (tmp_path / "slides" / "list.txt").write_text("good.tif\ncase/cut.tif\ncase/none.tif\n", encoding="utf-8")
    with pytest.raises(BundleError, match=r"2 of 3 slides failed, the others are complete:\n  cut: .*\n  none: "):
        segment_slides(engine(), tmp_path / "slides" / "list.txt", tmp_path / "listed")
    with pytest.raises(BundleError, match=r"1 of 2 slides failed, the others are complete:\n  case/cut: "):
        segment_slides(engine(), tmp_path / "slides", tmp_path / "out")
    assert areas(tmp_path / "out" / "good") == plain
