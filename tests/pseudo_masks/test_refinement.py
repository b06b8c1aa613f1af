import json

import numpy as np
import pytest
import torch
from conftest import LITE, TINY
from PIL import Image
from torch import nn

from scripts.pseudo_masks.refinement import ConfidentReplacement, SuperpixelAveraging


class Fixed(nn.Module):
    """Scores that do not depend on the image."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def forward(self, image, label=None):
        return self.scores


def test_superpixels_carry_the_mean_score_of_their_pixels():
    torch.manual_seed(0)
    image = torch.zeros(1, 3, 20, 24)
    image[..., 12:] = 1  # two colours, so that no superpixel crosses the edge
    scores = torch.rand(1, 2, 20, 24)
    scores[:, 1] = -torch.inf
    averaged = SuperpixelAveraging(Fixed(scores), area_px=40)(image)
    assert torch.isneginf(averaged[:, 1]).all()
    values = averaged[0, 0].unique()
    assert 4 <= len(values) <= 24
    for value in values:
        region = averaged[0, 0] == value
        assert value.item() == pytest.approx(scores[0, 0][region].mean().item(), abs=1e-5)
        assert len(image[0, 0][region].unique()) == 1


def test_one_superpixel_is_the_mean_of_the_image():
    scores = torch.rand(2, 3, 6, 6)
    averaged = SuperpixelAveraging(Fixed(scores), area_px=10_000)(torch.rand(2, 3, 6, 6))
    torch.testing.assert_close(averaged, scores.mean(dim=(2, 3), keepdim=True).expand_as(scores))


def test_sure_pixels_take_the_segmenters_probabilities():
    scores = torch.tensor([[[[0.9, 0.2]], [[0.1, 0.7]], [[-torch.inf, -torch.inf]]]])  # (1, 3, 1, 2)
    logits = torch.tensor([[[[0.0, 0.0]], [[3.0, 0.1]], [[9.0, 9.0]]]])  # the third class is left out all the same
    refined = ConfidentReplacement(Fixed(scores), Fixed(logits), confidence=0.8)(torch.rand(1, 3, 1, 2))
    sure = 1 / (1 + torch.tensor(-3.0).exp())
    expected = torch.tensor([[[[1 - sure, 0.2]], [[sure, 0.7]], [[-torch.inf, -torch.inf]]]])
    torch.testing.assert_close(refined, expected)


def test_refuses_settings_out_of_range():
    with pytest.raises(ValueError, match="`area_px` must be at least 1 pixel, got 0"):
        SuperpixelAveraging(nn.Identity(), area_px=0)
    with pytest.raises(ValueError, match=r"`confidence` must be in \[0, 1\], got 80; use a probability"):
        ConfidentReplacement(nn.Identity(), nn.Identity(), confidence=80)


def test_a_second_round_learns_from_the_first_one_s_segmentation(finished_run, run_bundle, demo_dir, tmp_path):
    configs = [*LITE, "configs/second_round.json"]
    settings = {**TINY, "source_dir": str(finished_run)}
    run_bundle("segmentation", tmp_path / "sure of nothing", configs, **settings, **{CONFIDENCE: 1.0})
    run_bundle("generate_pseudo_masks", tmp_path / "sure", configs, **settings, **{CONFIDENCE: 0.0})
    record = json.loads((tmp_path / "sure of nothing" / "run.json").read_text())
    assert list(record["stages"]) == ["generate_pseudo_masks", "train_segmenter"]
    assert (tmp_path / "sure of nothing" / "report.html").is_file()
    names = [path.name for path in (demo_dir / "train" / "img").iterdir()]
    first, unsure, sure = (
        [np.asarray(Image.open(run / "pseudo_masks" / name)) for name in names]
        for run in (finished_run, tmp_path / "sure of nothing", tmp_path / "sure")
    )
    assert all((a == b).all() for a, b in zip(first, unsure))
    assert any((a != b).any() for a, b in zip(first, sure))
    assert all(set(np.unique(b)) <= set(np.unique(a)) | present(name) for a, b, name in zip(first, sure, names))


CONFIDENCE = "pseudo_masks#network#confidence"


def present(name):
    """The mask values of the classes in a patch's label."""
    return {value for value, digit in enumerate(name.split("[")[1].split("]")[0].split(), start=1) if digit == "1"}


def test_val_s_masks_can_fit_the_cams(finished_run, run_bundle, tmp_path):
    path = str(finished_run / "models" / "classifier" / "model.pt")
    run_bundle("fit_cams", tmp_path, classifier_path=path, **{"fit_cams#0#steps": 1})
    fit = json.loads((tmp_path / "scores" / "cam_fit.json").read_text())
    assert fit["after"]["fitted"] >= fit["before"]["fitted"] and len(fit["level_weights"]) == 3
