import numpy as np
import pytest
import torch

from scripts.losses.pixel_terms import EPSILON, masked_mean, one_hot, roughness, uncertainty

SIZES = [(3, 4), (1, 4), (4, 1), (1, 1)]


def maps(channels, size, seed=0):
    """Values in (0, 1), (2, C, H, W), and a mask, (2, 1, H, W), that leaves some pixels out."""
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 2, (2, 1, *size)).astype(float)
    mask[0, 0, 0, 0] = 1
    return rng.uniform(0.01, 0.99, (2, channels, *size)), mask


def slow_roughness(values, mask):
    """The mean over vertical and the mean over horizontal pairs in the mask, and the gradient of their sum."""
    gradient, total = np.zeros_like(values), 0.0
    for axis in (0, 1):
        differences = []
        for b, y, x in np.ndindex(mask.shape[0], *mask.shape[2:]):
            to = (y + 1, x) if axis == 0 else (y, x + 1)
            if to[0] < mask.shape[2] and to[1] < mask.shape[3] and mask[b, 0, y, x] and mask[(b, 0, *to)]:
                for c in range(values.shape[1]):
                    differences.append(((b, c, y, x), (b, c, *to)))
        for here, there in differences:
            total += abs(values[there] - values[here]) / len(differences)
            gradient[there] += np.sign(values[there] - values[here]) / len(differences)
            gradient[here] -= np.sign(values[there] - values[here]) / len(differences)
    return total, gradient


def test_epsilon_is_the_published_one():
    assert EPSILON == 1e-6


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("channel_axis", [True, False])
def test_one_hot_marks_each_class_and_nothing_for_background(dtype, channel_axis):
    target = torch.tensor([[[0, 2, 1]], [[3, 255, 2]]]).to(dtype)  # (2, 1, 3)
    logits = torch.zeros(2, 3, 1, 3, dtype=torch.float64)
    onehot = one_hot(target[:, None] if channel_axis else target, logits)
    expected = torch.zeros(2, 3, 1, 3, dtype=torch.float64)
    for b, k, x in [(0, 0, 0), (0, 2, 1), (0, 1, 2), (1, 2, 2)]:
        expected[b, k, 0, x] = 1
    assert torch.equal(onehot, expected) and onehot.dtype == torch.float64


def test_one_hot_of_a_negative_value_is_background():
    assert not one_hot(torch.full((1, 1, 1), -1), torch.zeros(1, 2, 1, 1)).any()


@pytest.mark.parametrize("shape", [(3, 4), (1, 3, 4), (2, 4, 3), (2, 3, 3, 4), (2, 1, 4, 3), (2, 12), (2, 1, 1, 3, 4)])
def test_one_hot_refuses_targets_of_another_shape(shape):
    text = r"`target` must be \(B, H, W\) or \(B, 1, H, W\) to match `logits` \(2, 3, 3, 4\), got \(" + f"{shape[0]}, "
    with pytest.raises(ValueError, match=text):
        one_hot(torch.zeros(shape, dtype=torch.long), torch.zeros(2, 3, 3, 4))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_masked_mean_is_over_channels_and_marked_positions(size, channels):
    values, mask = maps(channels, size)
    v = torch.tensor(values, requires_grad=True)
    mean = masked_mean(v, torch.tensor(mask))
    mean.backward()
    marked = np.broadcast_to(mask, values.shape) > 0
    assert mean.item() == pytest.approx(values[marked].mean(), rel=1e-12)
    np.testing.assert_allclose(v.grad.numpy(), marked / marked.sum(), rtol=1e-12)


@pytest.mark.parametrize("size", [(2, 3), (0, 3)])
def test_masked_mean_of_no_position_is_zero(size):
    values = torch.ones(1, 2, *size, requires_grad=True)
    mean = masked_mean(values, torch.zeros(1, 1, *size))
    mean.backward()
    assert mean.item() == 0 and not values.grad.any()


@pytest.mark.parametrize("size", SIZES)
def test_uncertainty_is_the_closed_form(size):
    confidence, mask = maps(1, size)
    c = torch.tensor(confidence, requires_grad=True)
    value = uncertainty(c, torch.tensor(mask))
    value.backward()
    doubt = 1 - confidence
    terms = -doubt * np.log(doubt + 1e-6)
    assert value.item() == pytest.approx(terms[mask > 0].mean(), rel=1e-12)
    slope = np.log(doubt + 1e-6) + doubt / (doubt + 1e-6)
    np.testing.assert_allclose(c.grad.numpy(), slope * mask / mask.sum(), rtol=1e-12)


def test_uncertainty_of_a_sure_pixel_is_zero_with_a_finite_gradient():
    confidence = torch.ones(1, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    value = uncertainty(confidence, torch.ones(1, 1, 1, 1, dtype=torch.float64))
    value.backward()
    assert value.item() == 0
    assert confidence.grad.item() == pytest.approx(np.log(1e-6))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [*SIZES, (5, 6)])
def test_roughness_counts_the_pairs_inside_the_mask(size, channels):
    values, mask = maps(channels, size)
    for marked in (mask, np.ones_like(mask), np.zeros_like(mask)):
        v = torch.tensor(values, requires_grad=True)
        value = roughness(v, torch.tensor(marked))
        value.backward()
        expected, gradient = slow_roughness(values, marked)
        assert value.item() == pytest.approx(expected, rel=1e-12)
        np.testing.assert_allclose(v.grad.numpy(), gradient, atol=1e-14)


def test_roughness_adds_the_means_of_both_directions():
    prob = torch.tensor([[0.0, 1.0, 3.0], [10.0, 11.0, 13.0]]).view(1, 1, 2, 3)
    assert roughness(prob, torch.ones(1, 1, 2, 3)).item() == 10 + (1 + 2) / 2
