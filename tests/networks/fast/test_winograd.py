import copy

import pytest
import torch
from torch import nn

from scripts.networks import ImplicitBoundaryMining, ResNet38d, WinogradConv2d, with_winograd
from scripts.networks.fast import winograd

pytestmark = pytest.mark.usefixtures("one_thread")


def convolution(kernel, dilation=1, bias=True, channels=(5, 7)):
    torch.manual_seed(0)
    conv = nn.Conv2d(*channels, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=bias)
    return conv, WinogradConv2d(conv)


def taps_one_by_one(x, conv):
    """The convolution in double precision, added up tap by tap."""
    dilation, kernel, margin = conv.dilation[0], conv.kernel_size[0], conv.padding[0]
    padded = nn.functional.pad(x.double(), [margin] * 4)
    height, width = x.shape[2:]
    total = torch.zeros(len(x), conv.out_channels, height, width, dtype=torch.float64)
    for row in range(kernel):
        for column in range(kernel):
            top, left = row * dilation, column * dilation
            shifted = padded[:, :, top : top + height, left : left + width]
            total += torch.einsum("oc,bchw->bohw", conv.weight[:, :, row, column].double(), shifted)
    return total if conv.bias is None else total + conv.bias.double()[:, None, None]


@pytest.mark.parametrize("size", [(4, 4), (9, 6), (1, 1), (13, 3)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dilation", [1, 2, 4])
@pytest.mark.parametrize("kernel", [3, 5])
def test_gives_the_values_of_the_convolution(kernel, dilation, bias, size):
    conv, fast = convolution(kernel, dilation, bias)
    x = torch.randn(3, 5, *size)
    with torch.no_grad():
        values, wanted = fast(x), taps_one_by_one(x, conv)
    assert values.dtype == torch.float32 and not torch.equal(values, conv(x))  # another order of the arithmetic
    assert (values - wanted).abs().max() < 2e-5 * wanted.abs().max()


def test_memory_is_bounded_by_chunks_of_images(monkeypatch):
    conv, fast = convolution(3)
    x = torch.randn(4, 5, 8, 8)  # 4 tiles of 36 numbers in 5 channels per image
    seen = []
    monkeypatch.setattr(fast, "_convolve", lambda part: seen.append(part.shape) or torch.zeros(*part.shape[:3], 7))
    monkeypatch.setattr(winograd, "CHUNK_NUMBERS", 3 * 4 * 36 * 5)
    with torch.no_grad():
        assert fast(x).shape == (4, 7, 8, 8)
    assert seen == [(3, 8, 8, 5), (1, 8, 8, 5)]


def test_is_the_plain_convolution_where_gradients_other_types_or_exports_need_it():
    conv, fast = convolution(3)
    x = torch.randn(2, 5, 6, 6)
    assert torch.equal(fast(x), conv(x))
    fast(x).sum().backward()
    assert torch.isfinite(conv.weight.grad).all()  # the parameters are shared
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fast(x), conv(x))
    with torch.no_grad():
        assert torch.equal(fast.double()(x.double()), conv(x.double()))
        traced = torch.jit.trace(convolution(3)[1], x)
    assert "aten::bmm" not in str(traced.graph)


def test_follows_the_weight():
    conv, fast = convolution(3)
    x = torch.randn(1, 5, 6, 6)
    with torch.no_grad():
        before = fast(x)
        conv.weight.mul_(2)
        torch.testing.assert_close(fast(x) - conv.bias[:, None, None], 2 * (before - conv.bias[:, None, None]))


@pytest.mark.parametrize(
    ("settings", "eligible"),
    [
        ({}, True),
        ({"kernel_size": 5, "padding": 2}, True),
        ({"padding": 4, "dilation": 4}, True),
        ({"kernel_size": 1, "padding": 0}, False),
        ({"stride": 2}, False),
        ({"groups": 2}, False),
        ({"padding": 0}, False),
        ({"dilation": 2}, False),
        ({"dilation": (1, 2), "padding": (1, 2)}, False),
        ({"padding_mode": "reflect"}, False),
        ({"out_channels": 255}, False),
    ],
)
def test_chooses_convolutions_that_keep_the_size_and_have_many_channels(settings, eligible):
    settings = {"in_channels": 256, "out_channels": 256, "kernel_size": 3, "padding": 1} | settings
    assert winograd.is_eligible(nn.Conv2d(**settings, device="meta")) == eligible


def test_a_network_keeps_its_parameters_its_names_and_its_values():
    torch.manual_seed(0)
    network = ResNet38d().eval()
    fast = with_winograd(network)
    assert [module for module in network.modules() if isinstance(module, WinogradConv2d)] == []
    # two in each of 15 blocks, but those of b2 (6, of few channels) and the first of b3 and b4 (of stride 2), and one
    # in each of b6 and b7
    assert sum(isinstance(module, WinogradConv2d) for module in fast.modules()) == 24
    assert fast.state_dict().keys() == network.state_dict().keys()
    assert all(new is old for new, old in zip(fast.parameters(), network.parameters()))
    image = torch.rand(1, 3, 40, 24)
    with torch.no_grad():
        for new, old in zip(fast.levels(image), network.levels(image)):
            assert (new - old).abs().max() < 1e-4 * old.abs().max()
            assert not torch.equal(new, old)


def test_ibm_s_one_convolution_takes_winograd_s_way():
    torch.manual_seed(0)
    block = ImplicitBoundaryMining(16).eval()
    x = torch.randn(2, 16, 7, 9)
    wanted = block(x).detach()  # with a gradient: the four convolutions
    with torch.no_grad():
        values = block(x)
    assert (values - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert block._one_convolution()._transformed[1].shape == (64, 16, 16)
    assert copy.deepcopy(block)._folded is None  # a copy does not carry it along
