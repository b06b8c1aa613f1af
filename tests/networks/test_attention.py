import pytest
import torch

from scripts.networks import ChannelAttention, SpatialAttention

SIZES = [(5, 7), (8, 6), (2, 9), (1, 1)]


def randomized(module, seed=0):
    """``module`` in double precision with parameters that are not the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.double().parameters():
        parameter.data.normal_(0, 0.5, generator=generator)
    if isinstance(module, ChannelAttention) and module.squeeze.bias is not None:
        module.squeeze.bias.data.fill_(0.3)  # a single hidden unit would else be dead
    return module


def features(channels, height, width):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, channels, height, width, generator=generator, dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def literal_channel_attention(x, p):
    """``sigmoid(W2 ReLU(W1 GAP(x)))``, (B, C, H, W) -> (B, C, 1, 1); the biases, where there are any."""
    mean = x.sum(dim=(2, 3)) / (x.shape[2] * x.shape[3])
    hidden = (mean @ p["squeeze.weight"].T + p.get("squeeze.bias", 0)).clamp(min=0)
    return sigmoid(hidden @ p["excite.weight"].T + p.get("excite.bias", 0))[:, :, None, None]


def literal_spatial_attention(x, p):
    """``sigmoid(conv7x7([max; mean]))``, tap by tap, 0 outside the image: (B, C, H, W) -> (B, 1, H, W)."""
    batch, channels, height, width = x.shape
    padded = x.new_zeros(batch, 2, height + 6, width + 6)
    padded[:, 0, 3:-3, 3:-3] = x.max(dim=1).values
    padded[:, 1, 3:-3, 3:-3] = x.sum(dim=1) / channels
    total = p["conv.bias"].view(1, 1, 1)
    for row in range(7):
        for column in range(7):
            for c in range(2):
                total = total + p["conv.weight"][0, c, row, column] * padded[:, c, row:, column:][:, :height, :width]
    return sigmoid(total)[:, None]


def assert_values_and_gradients(module, literal, x):
    x.requires_grad_()
    y = module(x)
    (y**2).sum().backward()
    slow_x = x.detach().clone().requires_grad_()
    slow = {name: tensor.detach().clone().requires_grad_() for name, tensor in module.named_parameters()}
    slow_y = literal(slow_x, slow)
    (slow_y**2).sum().backward()
    torch.testing.assert_close(y, slow_y)
    torch.testing.assert_close(x.grad, slow_x.grad)
    assert x.grad.abs().max() > 1e-6
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, slow[name].grad)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("channels", "hidden", "bias"), [(32, 2, False), (48, 3, False), (2, 1, True), (4, 1, True)])
def test_channel_weights_and_gradients_are_those_of_the_literal_formula(channels, hidden, bias, size):
    module = randomized(ChannelAttention(channels, hidden, bias))
    assert_values_and_gradients(module, literal_channel_attention, features(channels, *size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [2, 5])
def test_position_weights_and_gradients_are_those_of_the_literal_formula(channels, size):
    module = randomized(SpatialAttention())
    assert_values_and_gradients(module, literal_spatial_attention, features(channels, *size))


def test_channel_attention_has_no_biases_unless_asked():
    shapes = {name: tuple(parameter.shape) for name, parameter in ChannelAttention(48, 3).named_parameters()}
    assert shapes == {"squeeze.weight": (3, 48), "excite.weight": (48, 3)}
    shapes = {name: tuple(p.shape) for name, p in ChannelAttention(4, 1, bias=True).named_parameters()}
    assert shapes == {"squeeze.weight": (1, 4), "squeeze.bias": (1,), "excite.weight": (4, 1), "excite.bias": (4,)}


def test_spatial_attention_sees_the_largest_channel_first_and_has_a_bias():
    module = SpatialAttention()
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {
        "conv.weight": (1, 2, 7, 7),
        "conv.bias": (1,),
    }
    for parameter in module.parameters():
        parameter.data.zero_()
    module.conv.weight.data[0, 0, 3, 3] = 1
    x = torch.tensor([-3.0, 5.0, 1.0]).view(1, 3, 1, 1)
    assert module(x).item() == pytest.approx(torch.sigmoid(torch.tensor(5.0)).item())


@pytest.mark.parametrize("hidden", [0, -1])
def test_refuses_an_empty_hidden_layer(hidden):
    with pytest.raises(ValueError, match=f"`hidden_channels` must be at least 1, got {hidden} for 15 channels"):
        ChannelAttention(15, hidden)
