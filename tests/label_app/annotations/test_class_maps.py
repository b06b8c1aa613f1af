from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from some_classes import some_classes
from synthetic_slide import write_slide

from scripts.label_app.annotations.class_maps import ClassMap, patch_map, picture_map, slide_map
from scripts.slides.reading.files import is_slide
from scripts.slides.reading.slide import Slide
from scripts.slides.segmenting.blending import Segmenter
from scripts.slides.segmenting.engine import SlideEngine


class Redness(torch.nn.Module):
    """Says 1 where an image is red, 2 where it is blue, at each pixel."""

    def forward(self, image):
        return torch.stack([image[:, 0], image[:, 2]], dim=1) * 20


@pytest.fixture()
def engine():
    segmenter = Segmenter(Redness(), some_classes(["red", "blue"]), torch.device("cpu"), batch_size=4)
    return SlideEngine(segmenter, model_mpp=1.0, tile_px=32)


@pytest.fixture()
def pixels():
    """Red with a blue rectangle, 200 x 240, all of it tissue."""
    pixels = np.full((200, 240, 3), [220, 30, 40], np.uint8)
    pixels[40:120, 60:200] = [40, 30, 220]
    return pixels


def test_a_regions_map_is_that_part_of_the_slides(engine, pixels, tmp_path, one_thread):
    slide = Slide(write_slide(tmp_path / "s.tif", pixels, mpp=0.5, levels=2))
    truth = np.where((pixels[..., 2] > 100), 2, 1)
    whole = slide_map(engine, slide, None)
    assert whole.values.shape == (100, 120) and whole.scale == (2.0, 2.0) and whole.size == (200, 240)
    assert np.array_equal(whole.mask(), truth)
    part = slide_map(engine, slide, (20, 40, 60, 100))  # top, left, height, width
    assert part.origin == (20.0, 40.0) and np.array_equal(part.mask(), truth[20:80, 40:140])
    assert 0 <= whole.uncertainty < 0.01  # probabilities of 0.9999996


def test_the_uncertainty_is_the_mean_entropy(engine, tmp_path, one_thread):
    grey = np.full((64, 64, 3), [128, 60, 128], np.uint8)  # as red as it is blue
    slide = Slide(write_slide(tmp_path / "s.tif", grey, mpp=1.0))
    assert slide_map(engine, slide, None).uncertainty == 1.0
    half = grey.copy()
    half[:, :32] = [220, 30, 40]
    slide = Slide(write_slide(tmp_path / "half.tif", half, mpp=1.0))
    assert slide_map(engine, slide, None).uncertainty == pytest.approx(0.5, abs=0.001)


def test_bands_and_strips_are_put_in_their_places(engine, pixels, tmp_path, one_thread):
    slide = Slide(write_slide(tmp_path / "s.tif", pixels, mpp=0.5, levels=2))
    whole = slide_map(engine, slide, None)
    engine.band_cells = 2  # several bands, as where memory is short
    assert np.array_equal(slide_map(engine, slide, None).values, whole.values)


def test_masks_are_nearest_pixels():
    values = np.array([[1, 2], [3, 4]], np.uint8)
    mask = ClassMap(values, 0, (2.0, 1.5), (0, 0), (4, 3)).mask()
    assert mask.tolist() == [[1, 2, 2], [1, 2, 2], [3, 4, 4], [3, 4, 4]]
    odd = ClassMap(values, 0, (2.0, 2.0), (0, 0), (5, 5)).mask()  # the slide's rest of less than half a pixel
    assert odd.shape == (5, 5) and odd[4].tolist() == [3, 3, 4, 4, 4]


def test_patches_are_cut_to_the_region():
    mask, entropy = np.arange(20, dtype=np.uint8).reshape(4, 5), np.linspace(0, 1, 20).reshape(4, 5)
    part = patch_map(SimpleNamespace(mask=mask, entropy=entropy), (1, 2, 2, 3))
    assert part.mask().tolist() == [[7, 8, 9], [12, 13, 14]] and part.origin == (1, 2)
    assert part.uncertainty == pytest.approx(np.mean([7, 8, 9, 12, 13, 14]) / 19)
    assert patch_map(SimpleNamespace(mask=mask, entropy=entropy), None).uncertainty == pytest.approx(0.5)


class FakeModel:
    """Says of a picture that its red part is 1 and the rest 2, and remembers in which size it saw it."""

    model_mpp = 1.0

    def predict(self, source):
        pixels = source if isinstance(source, np.ndarray) else np.asarray(Image.open(source))
        self.seen = pixels.shape[:2]
        mask = np.where(pixels[..., 0] > 130, 1, 2).astype(np.uint8)
        return SimpleNamespace(mask=mask, entropy=np.zeros(mask.shape))


@pytest.mark.parametrize(
    ("mpp", "seen"), [(None, (200, 240)), (1.01, (200, 240)), (0.5, (100, 120)), (0.25, (50, 60)), (2, (400, 480))]
)
def test_pictures_are_brought_to_the_networks_resolution(pixels, tmp_path, mpp, seen):
    Image.fromarray(pixels).save(tmp_path / "p.png")
    model = FakeModel()
    found = picture_map(model, tmp_path / "p.png", mpp, (7, 9))
    assert model.seen == seen and found.origin == (7, 9)
    assert np.array_equal(found.mask(), np.where(pixels[..., 0] > 130, 1, 2))


def test_slides_are_told_from_patches(pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "patch.tif")
    Image.fromarray(pixels).save(tmp_path / "patch.png")
    tifffile.imwrite(tmp_path / "tiled.tiff", pixels, photometric="rgb", tile=(64, 64))
    write_slide(tmp_path / "levels.tif", pixels, levels=2)
    (tmp_path / "broken.tif").write_bytes(b"II*\0")
    told = {
        name: is_slide(tmp_path / name)
        for name in ("patch.tif", "patch.png", "tiled.tiff", "levels.tif", "broken.tif", "x.svs")
    }
    assert [name for name, slide in told.items() if slide] == ["tiled.tiff", "levels.tif", "x.svs"]
