import math

import pytest
import torch
from monai.losses import DeepSupervisionLoss

from scripts.losses import BoundaryRegularizedLoss


def outputs(batch=2, dtype=torch.float32):
    """Three logits (B, 4), a boundary map (B, 1, 3, 5) and an embedding (B, 8, 3, 5), each with a gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, 4)] * 3 + [(batch, 1, 3, 5), (batch, 8, 3, 5)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def label(batch=2):
    return torch.randint(0, 2, (batch, 4), generator=torch.Generator().manual_seed(1)).float()


def no_loss(logits, label):
    return torch.zeros(())


@pytest.mark.parametrize("weights", [{}, {"boundary_weight": 0.3, "embedding_weight": 0.7}])
def test_value_and_gradients_are_the_closed_form(weights):
    def loss(logits, label):
        return sum((i + 1) * (z * label).sum() for i, z in enumerate(logits))

    *logits, boundary, embedding = outputs()
    value = BoundaryRegularizedLoss(loss, **weights)((*logits, boundary, embedding), label())
    value.backward()

    boundary_weight, embedding_weight = weights.values() if weights else (0.01, 0.01)
    squares = [number**2 for number in boundary.detach().flatten().tolist()]
    vectors = embedding.detach().permute(0, 2, 3, 1).reshape(-1, 8).tolist()
    lengths = [math.sqrt(sum(number**2 for number in vector)) for vector in vectors]
    expected = loss(logits, label()).item()
    expected += boundary_weight * sum(squares) / 30 + embedding_weight * sum(lengths) / 30
    assert value.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(boundary.grad, boundary_weight * 2 * boundary.detach() / 30)
    direction = embedding.detach() / torch.tensor(lengths).view(2, 1, 3, 5)
    torch.testing.assert_close(embedding.grad, embedding_weight * direction / 30)
    for i, z in enumerate(logits):
        torch.testing.assert_close(z.grad, (i + 1) * label())


def test_hands_the_logits_as_a_tuple_and_the_label_on():
    seen = []
    maps = outputs()
    truth = label()
    BoundaryRegularizedLoss(lambda *given: seen.append(given) or torch.zeros(()))(maps, truth)
    (given,) = seen
    assert isinstance(given[0], tuple) and len(given[0]) == 3
    assert all(a is b for a, b in zip(given[0], maps)) and given[1] is truth


def test_adds_to_the_loss_of_the_heads():
    heads = DeepSupervisionLoss(torch.nn.MultiLabelSoftMarginLoss(), weights=[0.2, 0.3, 0.5])
    maps = outputs()
    expected = -sum(
        weight * (label() * torch.log(torch.sigmoid(z)) + (1 - label()) * torch.log(torch.sigmoid(-z))).mean()
        for weight, z in zip((0.2, 0.3, 0.5), maps)
    )
    expected = expected + BoundaryRegularizedLoss(no_loss)(maps, label())
    torch.testing.assert_close(BoundaryRegularizedLoss(heads)(tuple(maps), label()), expected)


def test_an_embedding_of_zeros_has_a_finite_gradient():
    *logits, boundary, embedding = outputs()
    embedding = torch.zeros_like(embedding, requires_grad=True)
    value = BoundaryRegularizedLoss(no_loss, boundary_weight=0)((*logits, boundary, embedding), label())
    value.backward()
    assert value.item() == 0 and not embedding.grad.any()


@pytest.mark.parametrize(("weights", "expected"), [((1, 0), 300.0**2), ((0, 1), 3e4 * math.sqrt(8))])
def test_half_precision_maps_do_not_overflow(weights, expected):
    *logits, boundary, embedding = outputs(dtype=torch.float16)
    maps = (*logits, torch.full_like(boundary, 300.0), torch.full_like(embedding, 3e4))
    value = BoundaryRegularizedLoss(no_loss, *weights)(maps, label())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kept", [[0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 4], [3, 4, 0]])
def test_refuses_outputs_that_do_not_end_with_two_maps(kept):
    maps = [outputs()[i] for i in kept]
    shapes = ", ".join(str(tuple(z.shape)) for z in maps).replace("(", r"\(").replace(")", r"\)")
    text = rf"`outputs` must end with a boundary map and an embedding, got shapes \[{shapes}\]; use a classifier"
    with pytest.raises(ValueError, match=text):
        BoundaryRegularizedLoss(no_loss)(maps, label())
