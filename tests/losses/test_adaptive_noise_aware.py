import math

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from scripts.losses import AdaptiveNoiseAwareLoss

WEIGHTS = {"alpha": 0.7, "beta": 0.3, "gamma": 0.15, "tau": 0.45}
SIZES = [(3, 4), (1, 4), (4, 1), (1, 1)]


def sample(num_classes, size, background, batch=2):
    """Random logits (B, K, H, W), float64, and channel indices (B, H, W); K is background."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (batch, num_classes, *size))
    target = rng.integers(0, num_classes + background, (batch, *size))
    if background:
        target[0, 0, 0] = num_classes
    return logits, target


def probabilities(logits, target, background):
    """Pixel by pixel: softmax with a further logit of 100 where the target is background, 0 elsewhere."""
    batch, num_classes, height, width = logits.shape
    prob = np.zeros((batch, num_classes + background, height, width))
    for b, y, x in np.ndindex(batch, height, width):
        z = list(logits[b, :, y, x])
        if background:
            z.append(100.0 if target[b, y, x] == num_classes else 0.0)
        exponentials = [math.exp(value - max(z)) for value in z]
        prob[b, :, y, x] = np.array(exponentials) / sum(exponentials)
    return prob


def slow_loss(logits, target, background, keep=None, alpha=0.4, beta=0.4, gamma=0.2, tau=0.2):
    """The loss and which pixels are kept; ``keep`` overrides these, for a derivative with ``keep`` constant."""
    p = probabilities(logits, target, background)
    batch, channels, height, width = p.shape
    kept = np.zeros((batch, height, width), dtype=bool)
    cross_entropy = uncertainty = vertical = horizontal = 0.0
    for b, y, x in np.ndindex(batch, height, width):
        confidence = max(p[b, :, y, x])
        kept[b, y, x] = confidence > tau if keep is None else keep[b, y, x]
        if kept[b, y, x]:
            cross_entropy -= math.log(p[b, target[b, y, x], y, x] + 1e-6)
        uncertainty -= (1 - confidence) * math.log(1 - confidence + 1e-6)
        for c in range(channels):
            if y + 1 < height:
                vertical += abs(p[b, c, y + 1, x] - p[b, c, y, x])
            if x + 1 < width:
                horizontal += abs(p[b, c, y, x + 1] - p[b, c, y, x])
    cross_entropy /= batch * channels * height * width
    uncertainty /= batch * height * width
    vertical /= max(1, batch * channels * (height - 1) * width)
    horizontal /= max(1, batch * channels * height * (width - 1))
    return alpha * cross_entropy + beta * uncertainty + gamma * (vertical + horizontal), kept


def slow_gradient(logits, target, background, step=1e-6, **weights):
    """Central differences; which pixels are kept does not change."""
    _, keep = slow_loss(logits, target, background, **weights)
    gradient = np.zeros_like(logits)
    for index in np.ndindex(logits.shape):
        values = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[index] += sign * step
            values.append(slow_loss(moved, target, background, keep, **weights)[0])
        gradient[index] = (values[0] - values[1]) / (2 * step)
    return gradient


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("num_classes", "background"), [(3, True), (3, False), (2, False)])
def test_value_and_gradient_are_those_of_the_slow_loop(num_classes, background, size):
    logits, target = sample(num_classes, size, background)
    expected, keep = slow_loss(logits, target, background, **WEIGHTS)
    if size == (3, 4) and num_classes == 3:
        assert keep.any() and not keep.all()
    z = torch.tensor(logits, requires_grad=True)
    loss = AdaptiveNoiseAwareLoss(background, **WEIGHTS)(z, torch.tensor(target))
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(z.grad.numpy(), slow_gradient(logits, target, background, **WEIGHTS), atol=1e-8)


@pytest.mark.parametrize("term", ["alpha", "beta", "gamma"])
def test_each_term_alone_has_its_weight(term):
    logits, target = sample(3, (3, 4), background=True)
    weights = {"alpha": 0.0, "beta": 0.0, "gamma": 0.0, "tau": 0.45} | {term: 2.0}
    expected, _ = slow_loss(logits, target, True, **weights)
    loss = AdaptiveNoiseAwareLoss(True, **weights)(torch.tensor(logits), torch.tensor(target))
    assert loss.item() == pytest.approx(expected, rel=1e-9) and expected > 0.01


def test_starts_with_the_first_epoch_s_weights():
    logits, target = sample(3, (3, 4), background=True)
    loss = AdaptiveNoiseAwareLoss()(torch.tensor(logits), torch.tensor(target))
    expected, _ = slow_loss(logits, target, True, alpha=0.4, beta=0.4, gamma=0.2, tau=0.2)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_weights_can_be_moved_between_epochs():
    logits, target = sample(3, (3, 4), background=True)
    criterion = AdaptiveNoiseAwareLoss()
    for name, value in WEIGHTS.items():
        setattr(criterion, name, value)
    expected, _ = slow_loss(logits, target, True, **WEIGHTS)
    assert criterion(torch.tensor(logits), torch.tensor(target)).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("tau", "kept"), [(0.5, False), (0.4999, True)])
def test_confidence_must_exceed_the_threshold(tau, kept):
    logits, target = torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long)  # confidence 0.5 exactly
    loss = AdaptiveNoiseAwareLoss(background=False, alpha=1, beta=0, gamma=0, tau=tau)(logits, target)
    assert loss.item() == pytest.approx(-math.log(0.5 + 1e-6) / 2 if kept else 0.0)


def test_keeping_a_pixel_has_no_gradient():
    logits, target = torch.zeros(1, 2, 1, 1, requires_grad=True), torch.zeros(1, 1, 1, dtype=torch.long)
    AdaptiveNoiseAwareLoss(background=False, alpha=1, beta=0, gamma=0, tau=0.5)(logits, target).backward()
    assert torch.equal(logits.grad, torch.zeros(1, 2, 1, 1))


def test_background_costs_nothing_and_moves_nothing():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = AdaptiveNoiseAwareLoss(alpha=1, beta=1, gamma=1, tau=0.2)(logits, torch.full((1, 2, 2), 3))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=2e-6)
    assert logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_target_may_have_a_channel_axis_and_any_integer_type(dtype):
    logits, target = sample(3, (3, 4), background=True)
    expected, _ = slow_loss(logits, target, True, **WEIGHTS)
    criterion = AdaptiveNoiseAwareLoss(**WEIGHTS)
    target = torch.tensor(target).to(dtype)
    for shaped in (target, target[:, None]):
        assert criterion(torch.tensor(logits), shaped).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("value", [4, 254])
def test_every_value_beyond_the_classes_is_background(value):
    logits, target = sample(3, (3, 4), background=True)
    expected, _ = slow_loss(logits, target, True, **WEIGHTS)
    target[target == 3] = value
    loss = AdaptiveNoiseAwareLoss(**WEIGHTS)(torch.tensor(logits), torch.tensor(target))
    assert loss.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("background", [True, False])
def test_ignored_columns_change_nothing(background):
    logits, target = sample(3, (3, 4), background=background)
    expected, _ = slow_loss(logits, target, background, **WEIGHTS)
    wider = np.concatenate([logits, 5 * np.ones_like(logits)], axis=3)  # the ignored half has other probabilities
    target = np.concatenate([target, np.full_like(target, 255)], axis=-1)
    loss = AdaptiveNoiseAwareLoss(background=background, **WEIGHTS)(torch.tensor(wider), torch.tensor(target))
    assert loss.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_extreme_logits_give_finite_values_and_gradients(background, scale):
    logits, target = sample(3, (4, 5), background)
    z = torch.tensor(logits * scale, dtype=torch.float32, requires_grad=True)
    loss = AdaptiveNoiseAwareLoss(background)(z, torch.tensor(target))
    loss.backward()
    assert math.isfinite(loss.item()) and z.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(3, 4), (1, 3, 4), (2, 4, 3), (2, 3, 3, 4), (2, 1, 4, 3), (2, 12)])
def test_refuses_targets_of_another_shape(shape):
    logits = torch.zeros(2, 3, 3, 4)
    with pytest.raises(ValueError, match=r"`target` must be \(B, H, W\) or .* `logits` \(2, 3, 3, 4\), got"):
        AdaptiveNoiseAwareLoss()(logits, torch.zeros(shape, dtype=torch.long))


def test_half_precision_does_not_overflow():
    logits = torch.randn(1, 2, 300, 300, generator=torch.Generator().manual_seed(0))  # more pixels than float16 counts
    target = torch.zeros(1, 300, 300, dtype=torch.long)
    half = AdaptiveNoiseAwareLoss()(logits.half(), target)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, AdaptiveNoiseAwareLoss()(logits.half().float(), target))


@pytest.mark.parametrize("background", [False, True])
def test_does_not_wait_for_the_device(background):
    """Fake tensors have no values: reading one on the host (``.item()``, ``if``, a boolean index) raises."""
    with FakeTensorMode():
        logits = torch.randn(2, 3, 4, 5, requires_grad=True)
        AdaptiveNoiseAwareLoss(background)(logits, torch.zeros(2, 1, 4, 5, dtype=torch.uint8)).backward()
