import json

import numpy as np
import pytest
import torch
from monai.data import Dataset
from PIL import Image
from some_classes import some_classes
from torch import nn

import scripts.pseudo_masks.writing
from scripts.errors import BundleError
from scripts.pseudo_masks.writing import mask_items, write_pseudo_masks

CLASSES = some_classes(["tumor", "stroma"], segmenter_values=[2, 1])
SIZES = [(9, 8), (6, 7), (9, 8), (9, 8), (6, 7)]  # height, width
BATCHES = [[0, 2], [3], [1, 4]]  # by size, two at most


class PowerCutError(Exception):
    pass


class FakeSegmenter(nn.Module):
    """Scores the red of a pixel against the batch's mean red: what it says depends on who shares the batch."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.fail_at, self.shapes = fail_at, []

    def forward(self, image, label=None):
        if len(self.shapes) == self.fail_at:
            raise PowerCutError
        self.shapes.append(tuple(image.shape))
        assert not self.training
        red = image[:, 0]
        scores = torch.stack([red, red.mean().expand_as(red)], dim=1)  # (B, 2, H, W)
        return scores if label is None else scores.masked_fill(label[:, :, None, None] == 0, -torch.inf)


def load(item):
    with Image.open(item["image"]) as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    label = {"label": torch.tensor(item["label"], dtype=torch.float32)} if "label" in item else {}
    return {"image": pixels, "name": item["name"], **label}


def make_dataset(folder, images, labels=None):
    folder.mkdir()
    items = []
    for number, pixels in enumerate(images):
        path = folder / f"p{9 - number}.v1.{'tif' if number == 1 else 'png'}"  # not in the order of names
        Image.fromarray(pixels).save(path)
        label = {} if labels is None else {"label": labels[number]}
        items.append({"image": str(path), "name": path.name, **label})
    return Dataset(items, load)


def random_images(sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 200, (*size, 3), dtype=np.uint8) for size in sizes]


def write(dataset, mask_dir, network=None, classes=CLASSES, batch_size=2):
    network = network or FakeSegmenter().train()
    write_pseudo_masks(network, dataset, mask_dir, classes, batch_size)
    return network


def read(path):
    with Image.open(path) as mask:
        assert mask.mode == "P"
        return np.asarray(mask)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def expected_masks(images, batches, labels=None):
    """Channel 0, value 2, where a pixel is as red as its batch on average, else channel 1, value 1."""
    masks = {}
    for batch in batches:
        mean = np.mean([images[index][..., 0] for index in batch])
        for index in batch:
            mask = np.where(images[index][..., 0] >= mean, 2, 1)
            if labels is not None and sum(labels[index]) == 1:
                mask[:] = CLASSES.segmenter_values[labels[index].index(1)]
            masks[index] = mask.tolist()
    return masks


@pytest.fixture(scope="module")
def images():
    return random_images(SIZES)


@pytest.fixture(scope="module")
def uninterrupted(images, tmp_path_factory):
    """A data set without labels and its masks, by file."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    dataset = make_dataset(folder / "img", images)
    write(dataset, folder / "masks")
    return dataset, contents(folder / "masks")


def test_masks_of_mixed_sizes_go_through_in_batches_of_one_size(images, tmp_path):
    dataset = make_dataset(tmp_path / "img", images)
    network = write(dataset, tmp_path / "masks")
    assert network.shapes == [(2, 3, 9, 8), (1, 3, 9, 8), (2, 3, 6, 7)]
    names = [f"p{9 - number}.v1.png" for number in range(5)]
    for index, mask in expected_masks(images, BATCHES).items():
        assert read(tmp_path / "masks" / names[index]).tolist() == mask
    with Image.open(tmp_path / "masks" / names[0]) as mask:
        assert mask.convert("RGB").getpixel((0, 0)) == tuple(CLASSES.palette[mask.getpixel((0, 0))])
    assert json.loads((tmp_path / "masks" / "manifest.json").read_text()) == {"masks": names}
    assert sorted(contents(tmp_path / "masks")) == sorted([*names, "manifest.json"])


def test_true_labels_gate_the_classes(images, tmp_path):
    labels = [[0, 1], [1, 1], [1, 0], [0, 1], [1, 0]]
    write(make_dataset(tmp_path / "img", images, labels), tmp_path / "masks")
    gated = expected_masks(images, BATCHES, labels)
    assert gated != expected_masks(images, BATCHES)
    assert {index: read(tmp_path / "masks" / f"p{9 - index}.v1.png").tolist() for index in range(5)} == gated


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_whole_batches_and_come_to_the_same_masks(uninterrupted, tmp_path, world_size, as_process):
    dataset, whole = uninterrupted
    shapes = []
    for rank in reversed(range(world_size)):
        assert not (tmp_path / "manifest.json").exists()
        as_process(rank, world_size)
        network = FakeSegmenter()
        write_pseudo_masks(network, dataset, tmp_path, CLASSES, 2)
        shapes += network.shapes
    assert contents(tmp_path) == whole
    assert sorted(shapes) == sorted([(2, 3, 9, 8), (1, 3, 9, 8), (2, 3, 6, 7)])  # nothing twice


def test_masks_that_are_there_are_kept(uninterrupted, tmp_path):
    dataset, whole = uninterrupted
    (tmp_path / "p7.v1.png").write_bytes(b"edited by a person")
    network = write(dataset, tmp_path)
    assert contents(tmp_path) == whole | {"p7.v1.png": b"edited by a person"}
    assert len(network.shapes) == 3  # the other image of its batch is as it was


def test_nothing_is_computed_when_all_masks_are_there(uninterrupted, tmp_path):
    dataset, whole = uninterrupted
    for name in whole.keys() - {"manifest.json"}:
        (tmp_path / name).write_bytes(b"edited")
    assert write(dataset, tmp_path).shapes == []
    assert contents(tmp_path) == dict.fromkeys(whole, b"edited") | {"manifest.json": whole["manifest.json"]}


@pytest.mark.parametrize("batch", range(len(BATCHES)))
def test_an_interruption_at_a_batch_changes_no_mask(uninterrupted, tmp_path, batch):
    dataset, whole = uninterrupted
    with pytest.raises(PowerCutError):
        write(dataset, tmp_path, FakeSegmenter(fail_at=batch))
    done = [f"p{9 - index}.v1.png" for indices in BATCHES[:batch] for index in indices]
    assert set(contents(tmp_path) if tmp_path.exists() else []) <= set(done)  # written in the background; no manifest
    left = [batch for batch in BATCHES if not all((tmp_path / f"p{9 - index}.v1.png").exists() for index in batch)]
    network = write(dataset, tmp_path)
    assert len(network.shapes) == len(left)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("number", range(len(SIZES)))
def test_an_interruption_at_a_mask_changes_no_mask(uninterrupted, tmp_path, monkeypatch, number):
    dataset, whole = uninterrupted
    write_mask, written = scripts.pseudo_masks.writing.write_mask, []

    def write_some(path, mask, palette):
        if len(written) == number:
            raise PowerCutError
        written.append(path.name)
        write_mask(path, mask, palette)

    with monkeypatch.context() as patch, pytest.raises(PowerCutError):
        patch.setattr(scripts.pseudo_masks.writing, "write_mask", write_some)
        write(dataset, tmp_path)
    assert sorted(contents(tmp_path)) == sorted(written)
    write(dataset, tmp_path)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("background", [True, False])
def test_white_pixels_become_background_where_there_is_one(tmp_path, background):
    image = np.full((20, 20, 3), 40, dtype=np.uint8)
    image[:5, :10] = 230  # 50 pixels of glass
    image[10:17, 3:10] = 230  # 49 pixels: too few
    classes = CLASSES if background else some_classes(["rest", "tumor"], False, segmenter_values=[1, 0])
    expected = np.where(image[..., 0] == 230, *classes.segmenter_values)
    if background:
        expected[:5, :10] = 0
    write(make_dataset(tmp_path / "img", [image]), tmp_path / "masks", classes=classes)
    assert read(tmp_path / "masks" / "p9.v1.png").tolist() == expected.tolist()


def test_masks_are_made_of_the_training_patches_or_of_any_folder(tmp_path):
    for folder, name in (("train/img", "a-[0 1].png"), ("slides", "b.png")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / name).write_bytes(b"")
    patch, slide = tmp_path / "train" / "img" / "a-[0 1].png", tmp_path / "slides" / "b.png"
    patches = [{"image": str(patch), "label": [0, 1], "name": "a-[0 1].png"}]
    assert mask_items(lambda: patches) == patches
    (item,) = mask_items(None, slide.parent)
    with pytest.raises(BundleError, match="must be another folder than `image_dir`"):
        mask_items(None, slide.parent, slide.parent)
    assert (item["image"], item["name"]) == (str(slide), "b.png") and "b.png must be a readable image" in item["error"]


def test_overlays_show_the_masks_over_their_images(tmp_path):
    dataset = make_dataset(tmp_path / "img", random_images(SIZES))
    write_pseudo_masks(FakeSegmenter(), dataset, tmp_path / "masks", CLASSES, overlay_dir=tmp_path / "overlays")
    for item in dataset.data:
        name = f"{item['name'].rsplit('.', 1)[0]}.png"
        with Image.open(item["image"]) as image, Image.open(tmp_path / "masks" / name) as mask:
            colours = np.array(CLASSES.palette)[np.asarray(mask)]
            expected = np.round(0.5 * np.asarray(image).astype(float) + 0.5 * colours)
        with Image.open(tmp_path / "overlays" / name) as picture:
            assert np.abs(np.asarray(picture) - expected).max() <= 1
