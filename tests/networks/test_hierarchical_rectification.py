import math

import pytest
import torch
from torch.nn import functional as F

from scripts.networks import HierarchicalFeatureRectification


def make(channels=3, guide_channels=16):
    torch.manual_seed(0)
    return HierarchicalFeatureRectification(channels, guide_channels)


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_training_starts_from_the_level_itself():
    x = random(2, 3, 20, 17)
    assert torch.equal(make()(x, random(2, 16, 5, 4)), x)


@torch.no_grad()
def test_the_context_starts_as_the_mean_of_15_cells():
    module = make()
    module.gamma_context.fill_(2.0)
    x = random(1, 3, 20, 17)
    mean = F.avg_pool2d(x, 15, stride=1, padding=7)  # which counts the zeros beyond the border
    torch.testing.assert_close(module(x, random(1, 16, 5, 4)), x + 2 * mean)


@torch.no_grad()
def test_the_veto_weights_channels_by_the_mean_of_the_guide():
    module = make()
    module.gamma_veto.fill_(-0.7)
    x, guide = random(2, 3, 4, 5), random(2, 16, 5, 4)
    result = module(x, guide)
    for image in range(2):
        mean = [guide[image, channel].sum().item() / 20 for channel in range(16)]
        hidden = [max(0.0, sum(w * m for w, m in zip(row, mean))) for row in module.squeeze.weight.tolist()]
        assert len(hidden) == 2  # an eighth
        for channel, row in enumerate(module.excite.weight.tolist()):
            veto = 1 / (1 + math.exp(-sum(w * h for w, h in zip(row, hidden))))
            torch.testing.assert_close(result[image, channel], x[image, channel] * (1 - 0.7 * veto))


def test_only_the_context_has_spatial_weights_and_nothing_a_bias():
    shapes = {name: tuple(weight.shape) for name, weight in make().named_parameters()}
    assert shapes == {
        "gamma_veto": (1,),
        "gamma_context": (1,),
        "squeeze.weight": (2, 16),
        "excite.weight": (3, 2),
        "context.weight": (3, 1, 15, 15),
    }


def test_both_factors_learn_from_the_first_step():
    module = make()
    module(random(1, 3, 20, 17), random(1, 16, 5, 4)).square().sum().backward()
    assert module.gamma_veto.grad.abs() > 0 and module.gamma_context.grad.abs() > 0


def test_refuses_a_guide_too_narrow_for_an_eighth():
    with pytest.raises(ValueError, match="`guide_channels` must be at least 8, got 7"):
        make(guide_channels=7)
