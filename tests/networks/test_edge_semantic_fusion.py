import math

import pytest
import torch
from torch.nn import functional as F

from scripts.networks import EdgeSemanticFusion
from scripts.networks.edge_semantic_fusion import (
    AdaptiveFusionGate,
    HybridEdgeAwareTransformer,
    PyramidContextIntegrator,
)

CHANNELS = 32
SIZES = [(5, 7), (8, 6), (1, 1)]


def randomized(module, seed=0):
    """``module`` in evaluation mode with parameters and batch norm statistics that are not the initial ones."""
    torch.manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.3)
    return module.eval()


def features(height, width):
    return torch.randn(2, CHANNELS, height, width, generator=torch.Generator().manual_seed(1))


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def global_mean(x):
    """(B, C, H, W) -> (B, C)."""
    return x.sum(dim=(2, 3)) / (x.shape[2] * x.shape[3])


def literal_laplacian(x):
    """Of each channel, then summed over channels; outside the image is 0. (B, C, H, W) -> (B, 1, H, W)."""
    padded = F.pad(x, [1, 1, 1, 1])
    up, down, left, right = (
        padded[:, :, :-2, 1:-1],
        padded[:, :, 2:, 1:-1],
        padded[..., 1:-1, :-2],
        padded[..., 1:-1, 2:],
    )
    return (up + down + left + right - 4 * x).sum(dim=1, keepdim=True)


def literal_heat(x, p, prefix=""):
    weight, bias = p[f"{prefix}edge_conv.weight"], p[f"{prefix}edge_conv.bias"]
    return sigmoid(F.conv2d(torch.cat([x, literal_laplacian(x)], dim=1), weight, bias, padding=1))


def literal_coca(x, p, prefix):
    squeeze, excite = p[f"{prefix}squeeze.weight"], p[f"{prefix}excite.weight"]
    hidden = (global_mean(x) @ squeeze.T).clamp(min=0)
    return sigmoid(hidden @ excite.T)[:, :, None, None]


def literal_afg(x, p, prefix=""):
    weight, bias = p[f"{prefix}conv.weight"], p[f"{prefix}conv.bias"]
    return sigmoid(global_mean(x) @ weight[0, :, 0, 0] + bias)[:, None, None, None]


def literal_pool(x, size):
    height, width = x.shape[2:]
    rows = []
    for i in range(size):
        top, bottom = i * height // size, math.ceil((i + 1) * height / size)
        cells = []
        for j in range(size):
            left, right = j * width // size, math.ceil((j + 1) * width / size)
            cells.append(x[:, :, top:bottom, left:right].mean(dim=(2, 3)))
        rows.append(torch.stack(cells, dim=-1))
    return torch.stack(rows, dim=-2)


def literal_upsample(x, height, width):
    """Bilinear, the corner pixels' centres aligned."""

    def source(index, size_out, size_in):
        position = index * (size_in - 1) / (size_out - 1) if size_out > 1 else 0.0
        low = min(int(position), size_in - 1)
        return low, min(low + 1, size_in - 1), position - low

    rows = []
    for i in range(height):
        top, bottom, v = source(i, height, x.shape[2])
        cells = []
        for j in range(width):
            left, right, u = source(j, width, x.shape[3])
            upper = (1 - u) * x[:, :, top, left] + u * x[:, :, top, right]
            lower = (1 - u) * x[:, :, bottom, left] + u * x[:, :, bottom, right]
            cells.append((1 - v) * upper + v * lower)
        rows.append(torch.stack(cells, dim=-1))
    return torch.stack(rows, dim=-2)


def literal_pci(x, p, prefix=""):
    height, width = x.shape[2:]
    stacked = torch.cat([x] + [literal_upsample(literal_pool(x, s), height, width) for s in (1, 2, 3, 6)], dim=1)
    mixed = torch.einsum("oc,bchw->bohw", p[f"{prefix}conv.weight"][:, :, 0, 0], stacked)
    mean, var, weight, bias = (p[f"{prefix}bn.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
    normalized = (mixed - mean[:, None, None]) / torch.sqrt(var[:, None, None] + 1e-5)
    return (normalized * weight[:, None, None] + bias[:, None, None]).clamp(min=0)


def literal_esf(x, p):
    attention, weight, gate = literal_heat(x, p, "heat."), literal_coca(x, p, "coca."), literal_afg(x, p, "afg.")
    fused = x * attention * (1 + gate) + x * weight * (2 - gate) + literal_pci(x, p, "pci.")
    return F.conv2d(fused, p["fusion_conv.weight"], padding=1)


PARTS = [
    (HybridEdgeAwareTransformer, literal_heat),
    (AdaptiveFusionGate, literal_afg),
    (PyramidContextIntegrator, literal_pci),
    (EdgeSemanticFusion, literal_esf),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("part", "literal"), PARTS, ids=lambda value: value.__name__)
def test_values_and_gradients_are_those_of_the_literal_formula(part, literal, size):
    module = randomized(part(CHANNELS))
    x = features(*size).requires_grad_()
    y = module(x)
    (y**2).sum().backward()

    slow_x = x.detach().double().requires_grad_()
    slow = {name: tensor.detach().double().requires_grad_() for name, tensor in module.state_dict().items()}
    slow_y = literal(slow_x, slow)
    (slow_y**2).sum().backward()

    def close(actual, expected):
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5 * scale)

    close(y, slow_y)
    close(x.grad, slow_x.grad)
    for name, parameter in module.named_parameters():
        close(parameter.grad, slow[name].grad)


def test_heat_attends_to_the_laplacian_of_a_spike():
    heat = HybridEdgeAwareTransformer(2)
    for parameter in heat.parameters():
        parameter.data.zero_()
    heat.edge_conv.weight.data[0, 2, 1, 1] = 1  # the edge channel comes last
    x = torch.zeros(1, 2, 3, 3)
    x[0, :, 1, 1] = torch.tensor([1.0, 0.5])
    expected = torch.sigmoid(1.5 * torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]))
    torch.testing.assert_close(heat(x)[0, 0], expected)


def test_laplacian_is_neither_trained_nor_saved():
    heat = HybridEdgeAwareTransformer(2)
    assert set(dict(heat.named_parameters())) == set(heat.state_dict()) == {"edge_conv.weight", "edge_conv.bias"}


def test_biases_and_reduction_are_those_published():
    shapes = {name: tuple(parameter.shape) for name, parameter in EdgeSemanticFusion(48).named_parameters()}
    assert shapes == {
        "heat.edge_conv.weight": (1, 49, 3, 3),
        "heat.edge_conv.bias": (1,),
        "coca.squeeze.weight": (3, 48),
        "coca.excite.weight": (48, 3),
        "afg.conv.weight": (1, 48, 1, 1),
        "afg.conv.bias": (1,),
        "pci.conv.weight": (48, 240, 1, 1),
        "pci.bn.weight": (48,),
        "pci.bn.bias": (48,),
        "fusion_conv.weight": (48, 48, 3, 3),
    }


def test_pci_batch_norm_starts_as_the_identity():
    bn = PyramidContextIntegrator(4).bn
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(bn.eval()(x), x / math.sqrt(1 + 1e-5))


def test_refuses_fewer_channels_than_the_reduction():
    with pytest.raises(ValueError, match="`hidden_channels` must be at least 1, got 0 for 15 channels.* 16 or more"):
        EdgeSemanticFusion(15)
