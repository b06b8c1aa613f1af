import math

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from scripts.losses import IntraInterClassLoss

pytestmark = pytest.mark.usefixtures("one_thread")

WEIGHTS = {"alpha": 0.9, "beta": 0.35, "gamma": 0.25, "delta": 0.3, "eta": 0.45, "tau": 0.55}
METHOD = {"alpha": 1.0, "beta": 0.2, "gamma": 0.1, "delta": 0.1, "eta": 0.1, "tau": 0.4}  # as published
NOTHING = {"alpha": 0.0, "beta": 0.0, "gamma": 0.0, "delta": 0.0, "eta": 0.0}
SHAPES = {"batch of 1": (1, 3, 4), "a row": (2, 1, 5), "a column": (2, 5, 1), "pixels": (3, 1, 1), "a pixel": (1, 1, 1)}
CASES = [
    "no background",
    "background",
    "a class missing",
    "no foreground class",
    "one pixel of a class",
    "all background",
    "extreme",
    *SHAPES,
]


def sample(num_classes, case="background", seed=0):
    """Logits (B, K, H, W), float64, and channel indices (B, H, W); K and 255 are background."""
    rng = np.random.default_rng(seed)
    shape = SHAPES.get(case, (2, 3, 4))
    target = np.arange(math.prod(shape)) % num_classes
    rng.shuffle(target)
    target = target.reshape(shape)
    if case == "a class missing":
        target[target == 1] = 0 if num_classes == 2 else 2
    elif case == "no foreground class":
        target[:] = 0
    elif case == "one pixel of a class":
        target[target == num_classes - 1] = 0
        target[1, 1, 2] = num_classes - 1
    elif case == "all background":
        target[:] = num_classes
        target[0, 1] = 255
    if case in ("background", "one pixel of a class", "extreme"):
        target[0, 0, :2], target[1, 2, 1] = num_classes, 255
    logits = rng.normal(0, 1e4 if case == "extreme" else 1.2, (shape[0], num_classes, *shape[1:]))
    return torch.tensor(logits), torch.tensor(target)


def log(x):
    return torch.log(x + 1e-6)


def slow_terms(logits, target, published, tau):
    """CE, U, S, intra + inter and Dice, pixel by pixel, and how many pixels are kept and how many have a class."""
    batch, num_classes, height, width = logits.shape
    nothing = 0 * logits.sum()
    prob = {}  # of the pixels that have a class: its probabilities
    for b, y, x in np.ndindex(batch, height, width):
        if target[b, y, x] in range(num_classes):
            exponentials = torch.exp(logits[b, :, y, x] - logits[b, :, y, x].max().detach())
            prob[b, y, x] = exponentials / exponentials.sum()
    kept = [pixel for pixel, p in prob.items() if max(p.tolist()) > tau]
    cross_entropy = -sum(log(prob[pixel][target[pixel]]) for pixel in kept) / (num_classes * len(kept) + 1e-6)
    doubts = [1 - p.max() for p in prob.values()]
    uncertainty = sum(-doubt * log(doubt) for doubt in doubts) / max(1, len(doubts))
    smoothness = 0
    for down, right in ((1, 0), (0, 1)):
        pairs = [((b, y, x), (b, y + down, x + right)) for b, y, x in prob if (b, y + down, x + right) in prob]
        difference = sum((prob[second] - prob[first]).abs().sum() for first, second in pairs)
        smoothness = smoothness + difference / max(1, len(pairs) * num_classes)
    members = {k: [p for pixel, p in prob.items() if target[pixel] == k] for k in range(num_classes)}
    means = {k: sum(group) / len(group) for k, group in members.items() if group}
    intra = 0
    for k, group in members.items():
        if len(group) >= 2:
            intra = intra + sum(((p - means[k]) ** 2).sum() for p in group) / (len(group) * num_classes)
    cosines = [
        (means[i] * means[j]).sum() / torch.sqrt((means[i] ** 2).sum() * (means[j] ** 2).sum())
        for i in means
        for j in means
        if i < j
    ]
    similarity = sum(cosines) / max(1, len(cosines))
    class_term = intra / num_classes + (1 - similarity if published else similarity)
    dice = slow_published_dice(prob, target) if published else slow_dice(prob, members)
    terms = [nothing + term for term in (cross_entropy, uncertainty, smoothness, class_term, dice)]
    return terms, len(kept), len(prob)


def slow_published_dice(prob, target):
    pairs = [(p.tolist().index(max(p.tolist())), target[pixel].item()) for pixel, p in prob.items()]
    overlap, total = sum(a * t for a, t in pairs), sum(a + t for a, t in pairs)
    return 1 - (2 * overlap + 1e-6) / (total + 1e-6)


def slow_dice(prob, members):
    losses = []
    for k, group in members.items():
        if k >= 1 and group:
            predicted = sum(p[k] for p in prob.values())
            losses.append(1 - (2 * sum(p[k] for p in group) + 1e-6) / (predicted + len(group) + 1e-6))
    return sum(losses) / max(1, len(losses))


def slow_loss(logits, target, published, alpha, beta, gamma, delta, eta, tau):
    terms, *_ = slow_terms(logits, target, published, tau)
    return sum(weight * term for weight, term in zip((alpha, beta, gamma, delta, eta), terms))


def value_and_gradient(criterion, logits, *arguments):
    logits = logits.detach().clone().requires_grad_()
    value = criterion(logits, *arguments)
    value.backward()
    return value.detach(), logits.grad


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("num_classes", [2, 3, 4])
@pytest.mark.parametrize("published", [False, True])
def test_value_and_gradient_are_those_of_the_slow_loops(published, num_classes, case):
    logits, target = sample(num_classes, case)
    value, gradient = value_and_gradient(IntraInterClassLoss(published, **WEIGHTS), logits, target)
    expected, slow_gradient = value_and_gradient(slow_loss, logits, target, published, *WEIGHTS.values())
    assert value.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(gradient, slow_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("term", list(NOTHING))
@pytest.mark.parametrize("published", [False, True])
def test_each_term_alone_has_its_weight(published, term):
    logits, target = sample(3)
    weights = NOTHING | {"tau": 0.55, term: 2.0}
    value, gradient = value_and_gradient(IntraInterClassLoss(published, **weights), logits, target)
    expected, slow_gradient = value_and_gradient(slow_loss, logits, target, published, *weights.values())
    assert value.item() == pytest.approx(expected.item(), rel=1e-5) and expected.abs() > 0.01
    torch.testing.assert_close(gradient, slow_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("published", [False, True])
def test_default_weights_are_the_published_ones(published):
    logits, target = sample(3)
    value = IntraInterClassLoss(published)(logits, target)
    assert value.item() == pytest.approx(slow_loss(logits, target, published, *METHOD.values()).item(), rel=1e-5)


@pytest.mark.parametrize(("confidence", "kept"), [(0.39, False), (0.41, True)])
def test_default_threshold_is_the_published_one(confidence, kept):
    prob = torch.tensor([confidence] + [(1 - confidence) / 3] * 3)
    target = torch.zeros(1, 1, 1, dtype=torch.long)
    with_cross_entropy, without = (IntraInterClassLoss(alpha=alpha) for alpha in (1.0, 0.0))
    logits = prob.log().view(1, 4, 1, 1)
    cross_entropy = (with_cross_entropy(logits, target) - without(logits, target)).item()
    assert cross_entropy == pytest.approx(-math.log(confidence) / 4 if kept else 0, rel=1e-4)


def test_default_form_is_not_the_published_one():
    logits, target = sample(3)
    assert torch.equal(IntraInterClassLoss()(logits, target), IntraInterClassLoss(published=False)(logits, target))


def test_the_samples_have_sure_and_unsure_pixels():
    for num_classes in (2, 3, 4):
        for case in ("no background", "background", "one pixel of a class"):
            _, kept, total = slow_terms(*sample(num_classes, case), False, WEIGHTS["tau"])
            assert 2 <= kept <= total - 2
        _, kept, _ = slow_terms(*sample(num_classes), False, METHOD["tau"])
    assert kept < total  # with four classes the published threshold matters too


@pytest.mark.parametrize(("tau", "kept"), [(0.5, False), (0.4999, True)])
def test_confidence_must_exceed_the_threshold(tau, kept):
    logits, target = torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long)  # confidence 0.5 exactly
    weights = NOTHING | {"alpha": 1.0, "tau": tau}
    value, gradient = value_and_gradient(IntraInterClassLoss(**weights), logits, target)
    assert value.item() == pytest.approx(-math.log(0.5 + 1e-6) / 2 if kept else 0.0)
    torch.testing.assert_close(gradient.flatten(), torch.tensor([-0.25, 0.25]) * kept)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_background_pixels_take_no_part(num_classes, published):
    logits, target = sample(num_classes)
    background = (target >= num_classes)[:, None].expand_as(logits)
    assert background.any() and not background.all()
    criterion = IntraInterClassLoss(published, **WEIGHTS)
    value, gradient = value_and_gradient(criterion, logits, target)
    assert not gradient[background].any() and gradient[~background].all()
    moved = torch.where(background, 30 * torch.randn_like(logits), logits)
    value_moved, gradient_moved = value_and_gradient(criterion, moved, target)
    assert torch.equal(value, value_moved) and torch.equal(gradient, gradient_moved)


@pytest.mark.parametrize(("published", "expected"), [(False, 0.0), (True, 0.3)])  # published: inter is 1 without pairs
def test_a_batch_of_background_has_no_gradient(published, expected):
    logits, target = sample(3, "all background")
    value, gradient = value_and_gradient(IntraInterClassLoss(published, **WEIGHTS), logits, target)
    assert value.item() == pytest.approx(expected, abs=1e-7) and not gradient.any()


def cosine_of_class_means(logits, target):
    """Between classes 0 and 1."""
    prob = torch.softmax(logits, dim=1).movedim(1, -1)
    first, second = (prob[target == k].mean(dim=0) for k in (0, 1))
    return (first @ second / (first.norm() * second.norm())).item()


def overlapping(noise):
    """Logits (2, 2, 4, 4) that barely tell class 0, the upper half, from class 1."""
    target = torch.zeros(2, 4, 4, dtype=torch.long)
    target[:, 2:] = 1
    logits = torch.stack([0.4 - 0.3 * target, 0.2 * target], dim=1).float()
    return logits + noise * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)), target


@pytest.mark.parametrize("noise", [0.0, 0.5])  # without noise, intra is 0 and inter acts alone
@pytest.mark.parametrize("published", [False, True])
def test_a_step_pushes_class_means_apart_and_the_published_one_pulls_them_together(published, noise):
    logits, target = overlapping(noise)
    criterion = IntraInterClassLoss(published, **NOTHING | {"delta": 1.0})
    value, gradient = value_and_gradient(criterion, logits, target)
    before, after = (cosine_of_class_means(z, target) for z in (logits, logits - 5 * gradient))
    if noise == 0:
        assert value.item() == pytest.approx(1 - before if published else before, abs=1e-6)
    assert after > before + 1e-4 if published else after < before - 1e-4


def test_inter_terms_of_the_two_forms_are_opposite():
    logits, target = overlapping(0.5)
    weights = NOTHING | {"delta": 1.0}
    ours, gradient = value_and_gradient(IntraInterClassLoss(False, **weights), logits, target)
    theirs, published_gradient = value_and_gradient(IntraInterClassLoss(True, **weights), logits, target)
    cosine = cosine_of_class_means(logits, target)
    assert (ours - theirs).item() == pytest.approx(2 * cosine - 1, rel=1e-5)
    logits.requires_grad_()
    first, second = (torch.softmax(logits, dim=1).movedim(1, -1)[target == k].mean(dim=0) for k in (0, 1))
    (first @ second / (first.norm() * second.norm())).backward()
    torch.testing.assert_close(gradient - published_gradient, 2 * logits.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_soft_dice_has_a_gradient_and_the_published_one_none(num_classes):
    logits, target = sample(num_classes)
    weights = NOTHING | {"eta": 1.0}
    _, gradient = value_and_gradient(IntraInterClassLoss(True, **weights), logits, target)
    assert not gradient.any()
    criterion = IntraInterClassLoss(**weights)
    value, gradient = value_and_gradient(criterion, logits, target)
    valid = (target < num_classes)[:, None].expand_as(logits)
    assert gradient[valid].all()
    assert criterion(logits - gradient, target) < value - 1e-4


@pytest.mark.parametrize("published", [False, True])
def test_dice_of_a_perfect_answer_is_zero_and_of_its_opposite_one(published):
    target = torch.tensor([[[0, 1], [1, 0]]])
    logits = 1e4 * torch.stack([1.0 - target, target], dim=1)
    criterion = IntraInterClassLoss(published, **NOTHING | {"eta": 1.0})
    assert criterion(logits, target).item() == pytest.approx(0, abs=1e-6)
    assert criterion(-logits, target).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("published", [False, True])
def test_order_of_the_batch_does_not_matter(published):
    rng = torch.Generator().manual_seed(0)
    logits, target = torch.randn(5, 3, 4, 6, generator=rng), torch.randint(0, 4, (5, 4, 6), generator=rng)
    criterion = IntraInterClassLoss(published, **WEIGHTS)
    order = torch.tensor([3, 0, 4, 1, 2])
    value, gradient = value_and_gradient(criterion, logits, target)
    permuted, permuted_gradient = value_and_gradient(criterion, logits[order], target[order])
    torch.testing.assert_close(permuted, value)
    torch.testing.assert_close(permuted_gradient, gradient[order])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("published", [False, True])
def test_classes_are_pooled_over_a_batch_of_any_length(published, dtype):
    """Repeating the batch until its 120,000 pixels overflow half precision changes nothing."""
    logits, target = sample(4, "no background")
    logits = logits.to(dtype)
    criterion = IntraInterClassLoss(published, **WEIGHTS)
    expected = slow_loss(logits.double(), target, published, *WEIGHTS.values())
    value = criterion(logits.repeat(5000, 1, 1, 1), target.repeat(5000, 1, 1))
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_target_may_have_a_channel_axis_and_any_integer_type(dtype):
    logits, target = sample(3)
    criterion = IntraInterClassLoss(**WEIGHTS)
    expected = criterion(logits, target)
    target = target.to(dtype)
    assert torch.equal(criterion(logits, target), expected)
    assert torch.equal(criterion(logits, target[:, None]), expected)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("scale", [1e4, 1e30])
@pytest.mark.parametrize("case", ["no background", "background", "a pixel"])
def test_extreme_logits_give_finite_values_and_gradients(case, scale, published):
    logits, target = sample(3, case)
    value, gradient = value_and_gradient(IntraInterClassLoss(published), scale * logits.sign().float(), target)
    assert math.isfinite(value) and gradient.isfinite().all()


def test_a_sure_mistake_costs_the_logarithm_of_epsilon():
    logits, target = torch.tensor([-1e4, 1e4]).view(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long)
    value = IntraInterClassLoss(**NOTHING | {"alpha": 1.0})(logits, target)
    assert value.item() == pytest.approx(-math.log(1e-6) / 2)


@pytest.mark.parametrize("published", [False, True])
def test_autocast_changes_nothing(published):
    logits, target = sample(3)
    logits = logits.float()
    criterion = IntraInterClassLoss(published, **WEIGHTS)
    expected, expected_gradient = value_and_gradient(criterion, logits, target)
    logits.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = criterion(logits, target)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.equal(value, expected) and torch.equal(logits.grad, expected_gradient)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("published", [False, True])
def test_half_precision_logits_give_the_float32_value(published, dtype):
    logits, target = sample(3)
    logits = logits.to(dtype)
    criterion = IntraInterClassLoss(published, **WEIGHTS)
    expected, _ = value_and_gradient(criterion, logits.float(), target)
    value, gradient = value_and_gradient(criterion, logits, target)
    assert value.dtype == torch.float32 and abs(value - expected) < 1e-6
    assert gradient.dtype == dtype and gradient.isfinite().all()


@pytest.mark.parametrize("published", [False, True])
def test_does_not_wait_for_the_device(published):
    """Fake tensors have no values: reading one on the host (``.item()``, ``if``, a boolean index) raises."""
    with FakeTensorMode():
        logits = torch.randn(2, 3, 4, 5, requires_grad=True)
        IntraInterClassLoss(published)(logits, torch.zeros(2, 1, 4, 5, dtype=torch.uint8)).backward()


@pytest.mark.parametrize("published", [False, True])
def test_does_not_loop_over_classes(published):
    """A loop would make more operations of more classes."""
    operations = set()
    for num_classes in (2, 3, 5):
        graph_module = make_fx(IntraInterClassLoss(published))(*sample(num_classes))
        operations.add(len(graph_module.graph.nodes))
    assert len(operations) == 1


@pytest.mark.parametrize("shape", [(3, 4), (1, 3, 4), (2, 4, 3), (2, 3, 3, 4), (2, 1, 4, 3), (2, 12)])
def test_refuses_targets_of_another_shape(shape):
    logits = torch.zeros(2, 3, 3, 4)
    with pytest.raises(ValueError, match=r"`target` must be \(B, H, W\) or .* `logits` \(2, 3, 3, 4\), got \("):
        IntraInterClassLoss()(logits, torch.zeros(shape, dtype=torch.long))
