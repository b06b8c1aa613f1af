import math
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from scripts.losses import DeepSupervisionLoss, IntraInterClassLoss

CONFIG = Path(__file__).resolve().parents[2] / "bundle" / "configs" / "train.json"
LEVEL_WEIGHTS = (0.2, 0.3, 0.5)


@pytest.fixture(scope="module")
def criterion():
    parser = ConfigParser()
    parser.read_config(CONFIG)
    return parser.get_parsed_content("classifier_loss")


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(5, 4, generator=generator).mul(2).requires_grad_() for _ in LEVEL_WEIGHTS)


@pytest.fixture
def label():
    return torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0]], dtype=torch.float32)


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def test_value_is_the_weighted_sum_of_multi_label_soft_margins(criterion, logits, label):
    expected = 0.0
    for weight, level in zip(LEVEL_WEIGHTS, logits):
        for patch in range(5):
            for k in range(4):
                p = sigmoid(level[patch, k].item())
                expected -= weight * math.log(p if label[patch, k] else 1 - p) / (5 * 4)
    assert criterion(logits, label).item() == pytest.approx(expected, rel=1e-5)


def test_gradient_is_the_weighted_error_of_the_probabilities(criterion, logits, label):
    criterion(logits, label).backward()
    for weight, level in zip(LEVEL_WEIGHTS, logits):
        for patch in range(5):
            for k in range(4):
                expected = weight * (sigmoid(level[patch, k].item()) - label[patch, k].item()) / (5 * 4)
                assert level.grad[patch, k].item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_two_paths_of_segmentation_logits_add_up(dtype):
    generator = torch.Generator().manual_seed(0)
    main, auxiliary = (torch.randn(2, 3, 4, 5, generator=generator).requires_grad_() for _ in range(2))
    pseudo_mask = torch.randint(0, 4, (2, 1, 4, 5), generator=generator).to(dtype)
    two_paths = DeepSupervisionLoss(loss=IntraInterClassLoss(), weights=[1.0, 0.4])
    value = two_paths((main, auxiliary), pseudo_mask)
    gradients = torch.autograd.grad(value, (main, auxiliary))

    parts = [IntraInterClassLoss()(path, pseudo_mask) for path in (main, auxiliary)]
    assert parts[0].item() != pytest.approx(parts[1].item(), rel=1e-3)
    assert value.item() == pytest.approx(parts[0].item() + 0.4 * parts[1].item(), rel=1e-6)
    torch.testing.assert_close(gradients[0], torch.autograd.grad(parts[0], main)[0])
    torch.testing.assert_close(gradients[1], 0.4 * torch.autograd.grad(parts[1], auxiliary)[0])
    assert torch.equal(two_paths(main, pseudo_mask), parts[0])  # evaluation: the main path alone


def test_outputs_without_a_weight_are_refused():
    with pytest.raises(ValueError, match="`outputs` must have one tensor per weight, 2, got 3; set `weights` to one"):
        DeepSupervisionLoss(nn.MSELoss(), [0.5, 0.5])((torch.zeros(1),) * 3, torch.zeros(1))
