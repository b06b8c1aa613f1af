import json

import pytest
import torch
from some_classes import some_classes
from torch import nn

from scripts.evaluation.cam_fitting import RecordedCAMs, fit_cams, weight_grid
from scripts.pseudo_masks.cam import CAMSegmenter

CLASSES = some_classes(["red", "green"])


class ColourClassifier(nn.Module):
    """Only its middle CAM shows where red and green are; in the others the two are exchanged."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def cams(self, image):
        self.calls += 1
        right, wrong = image[:, :2], image[:, [1, 0]]
        return (wrong, right, wrong), torch.full((len(image), 2), 0.45)


def red_and_green(index):
    """An image that is red above and green below some row, with its mask."""
    image, mask = torch.zeros(3, 10, 6, dtype=torch.uint8), torch.ones(1, 10, 6, dtype=torch.uint8)
    image[0, : 3 + index], image[1, 3 + index :] = 200, 200
    mask[0, 3 + index :] = 2
    return {"image": image, "label": mask}


def test_finds_the_level_and_the_threshold_that_show_the_tissues(tmp_path):
    network = CAMSegmenter(ColourClassifier(), (0.4, 0.2, 0.4), threshold=0.5)
    images = [red_and_green(index) for index in range(4)]
    result = fit_cams(network, images, CLASSES, tmp_path / "fit.json", thresholds=(0.3, 0.7))
    shallow, middle, deep = result["level_weights"]
    assert middle > max(shallow, deep) and result["threshold"] == 0.3  # at 0.5 one class is all that is left
    assert result["before"]["fitted"] < 0.5 and result["after"] == {"fitted": 1.0, "held_out": 1.0}
    assert json.loads((tmp_path / "fit.json").read_text()) == result


def test_held_out_images_decide_nothing(tmp_path):
    images = [red_and_green(index) for index in range(4)]
    for item in images[1::2]:
        item["label"] = 3 - item["label"]  # the other half wants the opposite
    network = CAMSegmenter(ColourClassifier(), (0.4, 0.2, 0.4), threshold=0.3)
    result = fit_cams(network, images, CLASSES, tmp_path / "fit.json", thresholds=(0.3,))
    assert result["after"] == {"fitted": 1.0, "held_out": 0.0}


def test_each_image_goes_through_the_classifier_once():
    classifier = ColourClassifier()
    recorded = RecordedCAMs(classifier)
    images = torch.rand(3, 1, 3, 4, 4)
    first = [recorded.cams(image) for image in images]
    recorded.rewind()
    assert all(again is before for again, before in zip((recorded.cams(image) for image in images), first))
    assert classifier.calls == 3


def test_grid_of_weights():
    weights = list(weight_grid(5))
    assert len(weights) == len(set(weights)) == 21
    assert all(sum(single) == pytest.approx(1) and min(single) >= 0 for single in weights)


def test_one_image_has_no_other_half(tmp_path):
    with pytest.raises(
        ValueError, match="val must have at least two images, one half to fit on and one to score, got 1"
    ):
        fit_cams(CAMSegmenter(ColourClassifier(), (1, 1, 1), 0.5), [red_and_green(0)], CLASSES, tmp_path / "a")
