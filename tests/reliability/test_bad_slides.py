"""Slides that are not as they must be: each is named, the others are segmented, and no memory is taken for claims."""

import struct
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from bad_input import require_sentence, stopped, table, write_bytes
from some_classes import some_classes
from synthetic_slide import write_slide
from torch import nn

from scripts.slides.reading.slide import Slide
from scripts.slides.segmenting.blending import Segmenter
from scripts.slides.segmenting.engine import SlideEngine
from scripts.slides.segmenting.run import segment_slides

CLASSES = some_classes(["red", "green"])
NOISE = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
NOISE[..., 2] = 90


class RedOrGreen(nn.Module):
    def forward(self, image):
        return 9 * image[:, :2]


def engine(model_mpp=1.0):
    segmenter = Segmenter(RedOrGreen(), CLASSES, torch.device("cpu"), 4)
    return SlideEngine(segmenter, model_mpp, 32)


def tiff(width, height, tile=256, tiles=1):
    """A fault: a tiled RGB TIFF of 0.5 um per pixel whose header claims any size."""
    offset = 8 + 2 + 12 * 14 + 4
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, offset),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (277, 3, 1, 3),
        (282, 5, 1, offset + 6),
        (283, 5, 1, offset + 6),
        (284, 3, 1, 1),
        (296, 3, 1, 3),
        (322, 4, 1, tile),
        (323, 4, 1, tile),
        (324, 4, 1, offset + 14),
        (325, 4, 1, 3 * 256 * 256),
    ]
    content = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for tag, kind, count, value in tags:
        content += struct.pack("<HHI", tag, kind, count)
        content += struct.pack("<HH", value, 0) if kind == 3 and count == 1 else struct.pack("<I", value)
    content += struct.pack("<I", 0) + struct.pack("<3H", 8, 8, 8) + struct.pack("<2I", 20000, 1)
    return write_bytes("bad.tif", content + bytes(3 * 256 * 256))


def written(image=NOISE, **options):
    """A fault: a slide of other pixels or resolution."""
    return lambda folder: write_slide(folder / "bad.tif", image, **options)


def shortened(share):
    """A fault: a slide without its end."""

    def spoil(folder):
        content = write_slide(folder / "bad.tif", NOISE, 0.5).read_bytes()
        (folder / "bad.tif").write_bytes(content[: int(share * len(content))])

    return spoil


READ = "bad.tif must be a readable slide; openslide: "
SLIDES = table(
    ("no bytes", write_bytes("bad.tif", b""), READ, "tifffile: ", "Replace the file"),
    ("text", write_bytes("bad.tif", b"no slide"), READ, "tifffile: ", "Replace the file"),
    ("a header alone", write_bytes("bad.tif", b"II*\0\x08\0\0\0"), READ, "tifffile: ", "Replace the file"),
    ("cut short early", shortened(0.1), READ, "tifffile: ", "Replace the file"),
    ("cut short late", shortened(0.9), "bad.tif must be readable; its level 0 is damaged at row 0, column 0"),
    ("no resolution", written(mpp=None), "bad.tif must state its micrometres per pixel", "--mpp"),
    ("a printer's resolution", written(mpp=353), "bad.tif must state its micrometres per pixel", "--mpp"),
    (
        "a side of 4 billion",
        tiff(2**32 - 1, 2**32 - 1),
        READ,
        "levels must have 1 to 1e+11 pixels",
        "LARGEST_SLIDE_GPX",
    ),
    ("a tile of 65536", tiff(70000, 70000, 65536), READ, "tiles must have 1 to 1.8e+08 pixels", "LARGEST_IMAGE_MPX"),
    ("no width", tiff(0, 256), READ, "Replace the file"),
)


@pytest.mark.parametrize("case", SLIDES)
def test_a_bad_slide_is_named_and_the_other_one_segmented(tmp_path, case):
    slides = tmp_path / "slides"
    slides.mkdir()
    write_slide(slides / "good.tif", NOISE, 0.5)
    case.spoil(slides)
    message = stopped(segment_slides, engine(), slides, tmp_path / "out")
    assert message.startswith("1 of 2 slides failed, the others are complete:\n  bad: ")
    require_sentence(message, case)
    assert (tmp_path / "out/good/record.json").is_file() and not (tmp_path / "out/bad").exists()


def test_the_header_of_the_absurd_slides_is_right(tmp_path):
    tiff(256, 256)(tmp_path)
    slide = Slide(tmp_path / "bad.tif")
    assert slide.level_sizes == [(256, 256)] and slide.mpp == pytest.approx((0.5, 0.5))
    assert not slide.read(0, 0, 0, 256, 256).any()


@dataclass
class Limit:
    """What a variable must be set to so that a slide of 300 x 300 pixels in tiles of 256 is read, or is not."""

    name: str
    enough: str
    too_little: str


@pytest.mark.parametrize(
    "limit", [Limit("LARGEST_SLIDE_GPX", "9e-5", "8e-5"), Limit("LARGEST_IMAGE_MPX", "0.066", "0.065")]
)
@pytest.mark.parametrize("backend", ["openslide", "tifffile"])
def test_the_limits_can_be_set(tmp_path, monkeypatch, limit, backend):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", None)  # and set back afterwards
    path = write_slide(tmp_path / "a.tif", NOISE, 0.5)
    monkeypatch.setenv(limit.name, limit.enough)
    assert Slide(path, backends=[backend]).level_sizes == [(300, 300)]
    monkeypatch.setenv(limit.name, limit.too_little)
    with pytest.raises(
        ValueError, match=f"a.tif must be .*; {backend}: its .* raise the environment variable {limit.name}"
    ):
        Slide(path, backends=[backend])


@pytest.mark.parametrize("mpp", [float("nan"), 0, -1, 400, float("inf")])
def test_resolutions_that_cannot_be_are_refused(tmp_path, mpp):
    path = write_slide(tmp_path / "a.tif", NOISE, None)
    assert "a.tif: `mpp` must state between 0.02 and 20.0 micrometres per pixel" in stopped(Slide, path, mpp)
    assert "`model_mpp` must be between 0.02 and 20.0 micrometres per pixel" in stopped(engine, mpp)
