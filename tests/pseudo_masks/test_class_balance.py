import json

import pytest
import torch
from conftest import LITE, TINY
from PIL import Image
from torch import nn

from scripts.pseudo_masks.cam import CAMSegmenter, balance_classes
from scripts.pseudo_masks.class_balance import class_strengths, measure_strengths, purest_patches


class LoudRed(nn.Module):
    """Answers to red three times as loudly as to green; the deeper level answers at half strength, half size."""

    def cams(self, image):
        shallow = image[:, :2] * torch.tensor([3.0, 1.0])[:, None, None]
        deep = nn.functional.avg_pool2d(shallow, 2) / 2
        return (shallow, deep), torch.ones(len(image), 2)


def patch(red, green, size=4):
    image = torch.zeros(3, size, size, dtype=torch.uint8)
    image[0], image[1] = red, green
    return {"image": image, "label": [int(red > 0), int(green > 0)]}


def write_items(folder, items):
    """The items as a data set has them, with paths, and what loads their images."""
    paths = [str(folder / f"{index}.png") for index in range(len(items))]
    for path, item in zip(paths, items):
        Image.fromarray(item["image"].permute(1, 2, 0).numpy()).save(path)
    entries = [{"image": path, "label": item["label"]} for path, item in zip(paths, items)]
    return entries, lambda entry: {"image": items[paths.index(entry["image"])]["image"]}


def test_strengths_are_means_over_patches_that_show_one_class(tmp_path):
    items, load = write_items(tmp_path, [patch(51, 0), patch(153, 0), patch(0, 102), patch(255, 255), patch(255, 1, 8)])
    strengths = measure_strengths(LoudRed(), items, load, batch_size=2, device="cpu")
    red, green = (0.2 + 0.6) / 2, 0.4  # of 255
    torch.testing.assert_close(torch.tensor(strengths), torch.tensor([[3 * red, green], [1.5 * red, green / 2]]))


def test_a_class_never_alone_is_measured_where_it_has_the_least_company():
    labels = [[1, 1, 1], [1, 1, 0], [0, 1, 0], [1, 0, 1], [0, 1, 1]]
    assert purest_patches(labels, 0) == [1, 3]
    assert purest_patches(labels, 1) == [2]
    assert purest_patches(labels, 2) == [3, 4]
    assert purest_patches([[0]] * 3, 0) == []
    assert purest_patches([[1]] * 10, 0, limit=4) == [0, 3, 6, 9]


def test_a_loud_class_takes_no_more_than_its_share(tmp_path):
    items, load = write_items(tmp_path, [patch(200, 0), patch(0, 200)])
    strengths = measure_strengths(LoudRed(), items, load, batch_size=1, device="cpu")
    image = torch.zeros(1, 3, 2, 4)
    image[:, 0], image[:, 1] = 0.4, torch.tensor([0.1, 0.3, 0.5, 0.9])  # truth: red, red, green, green
    plain, balanced = (
        CAMSegmenter(LoudRed(), (0.5, 0.5), 0.5, class_strengths=given)(image) for given in (None, strengths)
    )
    assert (plain.max(dim=1).indices == 0).float().mean() == 1.0
    assert balanced.max(dim=1).indices[0].tolist() == [[0, 0, 1, 1]] * 2
    assert balanced.min() >= 0 and balanced.max() == 1


def test_balancing_divides_by_the_strengths_of_the_weighted_levels():
    cam = torch.rand(2, 3, 4, 5)
    balanced = balance_classes(cam, (0.25, 0.75), [[4.0, 0.0, 1.0], [8.0, 0.0, 0.0]])
    torch.testing.assert_close(balanced, cam / torch.tensor([7.0, 1.0, 0.25])[:, None, None])  # strength 0: as it is


def test_the_file_beside_the_classifier_spares_the_patches(tmp_path, as_process):
    items, load = write_items(tmp_path, [patch(200, 0), patch(0, 200)])
    path = tmp_path / "class_strengths.json"
    arguments = {"transform": load, "batch_size": 1, "device": "cpu"}
    as_process(1, 2)
    unwritten = class_strengths(path, LoudRed(), lambda: items, **arguments)
    assert not path.exists()
    as_process(0, 2)
    assert class_strengths(path, LoudRed(), lambda: items, **arguments) == unwritten
    read = class_strengths(path, None, None, **arguments)
    assert read == unwritten == json.loads(path.read_text())["class_strengths"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"class_strengths": [["a"]]}', '{"class_strengths": [[-1.0]]}'])
def test_refuses_a_file_that_has_no_strengths(tmp_path, text):
    path = tmp_path / "class_strengths.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="class_strengths.json must have numbers, 0 or more, by level and class"):
        class_strengths(path, None, None, None, 1, "cpu")


def test_refuses_what_cannot_be_measured(tmp_path):
    items, load = write_items(tmp_path, [patch(200, 0)])
    with pytest.raises(ValueError, match="class 1 must appear in at least one training patch, but is in none"):
        measure_strengths(LoudRed(), items, load, 1, "cpu")

    class Broken(LoudRed):
        def cams(self, image):
            return (image[:, :2] * torch.nan,), None

    with pytest.raises(ValueError, match="the CAMs of class 0 must be finite"):
        measure_strengths(Broken(), items, load, 1, "cpu")


def test_refuses_strengths_of_another_classifier():
    with pytest.raises(ValueError, match=r"one row per level \(2\), got 3; measure them with this classifier"):
        CAMSegmenter(LoudRed(), (0.5, 0.5), 0.5, class_strengths=[[1.0, 1.0]] * 3)
    with pytest.raises(ValueError, match=r"one column per class \(2\), got 3"):
        CAMSegmenter(LoudRed(), (0.5, 0.5), 0.5, class_strengths=[[1.0] * 3] * 2)(torch.rand(1, 3, 4, 4))


@pytest.mark.e2e
def test_a_run_keeps_its_classifiers_strengths_and_measures_a_new_classifiers_anew(run_bundle, tmp_path):
    balanced = {"cam_segmenter#class_strengths": "@class_strengths"}
    for _ in range(2):
        run_bundle("train_classifier", tmp_path, LITE, **TINY, **balanced, redo="train_classifier")
    for folder in (tmp_path, tmp_path / "previous" / "1"):
        assert (folder / "models" / "classifier" / "class_strengths.json").is_file()
