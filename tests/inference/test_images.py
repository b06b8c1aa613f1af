import logging

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from PIL import Image
from some_classes import some_classes
from torch import nn

from scripts.inference.images import SaveMasksHandler

CLASSES = some_classes(["tumor", "stroma"])
PALETTE = CLASSES.palette


def item(name, height=4, width=5, seed=0):
    """An image's pixels, (H, W, 3) uint8, and mask, (H, W), and both as an evaluator has them."""
    rng = np.random.default_rng(seed)
    pixels, mask = rng.integers(0, 256, (height, width, 3), dtype=np.uint8), rng.integers(0, 3, (height, width))
    tensors = {"image": torch.from_numpy(pixels).permute(2, 0, 1).float() / 255, "pred": torch.from_numpy(mask)[None]}
    return pixels, mask, {"name": name, **tensors}


def save(handler, *items):
    engine = Engine(lambda engine, batch: batch)
    handler.attach(engine)
    engine.run([[entry] for entry in items])


def read(path):
    """The mode, the values and the colours of a picture."""
    with Image.open(path) as picture:
        return picture.mode, np.asarray(picture), np.asarray(picture.convert("RGB"))


def test_masks_are_palette_pngs_of_our_values(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="scripts.inference.images")
    _, first, one = item("a.jpg")
    _, second, other = item("b.v2.tif", 7, 3, seed=1)  # of another size
    save(SaveMasksHandler(tmp_path, CLASSES), one, other)
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["a.png", "b.v2.png"]
    for name, mask in (("a.png", first), ("b.v2.png", second)):
        mode, values, colours = read(tmp_path / "masks" / name)
        assert mode == "P" and values.tolist() == mask.tolist()
        assert colours.tolist() == [[PALETTE[value] for value in row] for row in mask]
    assert caplog.messages == [f"Wrote masks and mask overlays of 2 images to {tmp_path}."]


@pytest.mark.parametrize(
    ("mask_values", "written"),
    [
        ({"0": 1, "1": 2, "4": 0}, [4, 0, 1]),
        ({"0": 0, "10-20": 1, "21-255": 2}, [0, 10, 21]),
        ({"3": 0, "1": 1, "2": 2, "7": 1}, [3, 1, 2]),
    ],
)
def test_published_values_are_shown_in_the_same_colours(tmp_path, mask_values, written):
    pixels, mask, entry = item("a.png")
    classes = some_classes(CLASSES.class_names, mask_values=mask_values)
    save(SaveMasksHandler(tmp_path, classes, published_values=True), entry)
    _, values, colours = read(tmp_path / "masks" / "a.png")
    assert values.tolist() == [[written[value] for value in row] for row in mask]
    assert colours.tolist() == [[PALETTE[value] for value in row] for row in mask]
    assert overlay_difference(tmp_path, pixels, mask, 0.5) <= 0.51  # by our values, whatever is written


def overlay_difference(folder, pixels, mask, opacity):
    """How far the overlay ``a.png`` is at most from ``opacity`` parts colour over the image; value 0 is clear."""
    mode, _, found = read(folder / "overlays" / "a.png")
    assert mode == "RGB"
    expected = np.array(
        [
            [
                pixel if value == 0 else [(1 - opacity) * p + opacity * c for p, c in zip(pixel, PALETTE[value])]
                for pixel, value in zip(*rows)
            ]
            for rows in zip(pixels.tolist(), mask.tolist())
        ]
    )
    return np.abs(found - expected).max()


@pytest.mark.parametrize(("settings", "opacity"), [({}, 0.5), ({"opacity": 0.5}, 0.5), ({"opacity": 0.2}, 0.2)])
def test_overlays_mix_colours_and_image(tmp_path, settings, opacity):
    pixels, mask, entry = item("a.jpg")
    save(SaveMasksHandler(tmp_path, CLASSES, **settings), entry)
    assert overlay_difference(tmp_path, pixels, mask, opacity) <= 0.51


class BrightestChannel(nn.Module):
    def forward(self, image):
        return image.argmax(dim=1, keepdim=True)  # (B, 1, H, W)


def test_an_evaluator_s_batches_are_taken_apart(tmp_path):
    entries = [item(name, seed=seed)[2] for seed, name in enumerate(("a.png", "b.png", "c.png"))]
    loader = DataLoader([{key: entry[key] for key in ("image", "name")} for entry in entries], batch_size=2)
    handlers = [SaveMasksHandler(tmp_path, CLASSES)]
    SupervisedEvaluator("cpu", loader, BrightestChannel(), val_handlers=handlers).run()
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        pixels = item(name, seed=seed)[0]
        assert read(tmp_path / "masks" / name)[1].tolist() == pixels.argmax(axis=2).tolist()


@pytest.mark.parametrize(("mask_values", "missing"), [({"0": 1, "1": 2}, [0]), ({"5-9": 1}, [0, 2]), ({}, [0, 1, 2])])
def test_refuses_mask_values_without_an_entry_for_ours(tmp_path, mask_values, missing):
    classes = some_classes(CLASSES.class_names, mask_values=mask_values)
    with pytest.raises(ValueError, match="must have an entry for each of our values, got none for") as error:
        SaveMasksHandler(tmp_path, classes, published_values=True)
    assert f"got none for {missing};" in str(error.value)


@pytest.mark.parametrize("opacity", [-0.1, 50, float("nan")])
def test_refuses_opacities_outside_0_to_1(tmp_path, opacity):
    with pytest.raises(ValueError, match=rf"`opacity` must be in \[0, 1\], got {opacity}; 0.5 shows"):
        SaveMasksHandler(tmp_path, CLASSES, opacity=opacity)
