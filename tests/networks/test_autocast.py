import pytest
import torch
from torch import nn

from scripts.networks import Autocast, has_bfloat16


class Pair(nn.Module):
    """Two outputs, and a note of the types in which they were computed."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.types = []

    def forward(self, image):
        output = self.conv(image)
        self.types.append(output.dtype)
        return output, 2 * output


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_network_works_in_the_type_and_answers_in_float32(dtype):
    torch.manual_seed(0)
    network, image = Pair(), torch.rand(1, 3, 4, 4)
    one, two = Autocast(network, dtype)(image)
    assert network.types == [getattr(torch, dtype)]
    assert one.dtype == two.dtype == torch.float32
    exact = network.conv(image)
    torch.testing.assert_close(one, exact, rtol=0, atol=0 if dtype == "float32" else 0.02)
    assert torch.equal(one, exact) == (dtype == "float32")
    one.sum().backward()
    assert network.conv.weight.grad.dtype == torch.float32


def test_a_single_tensor_stays_one():
    assert Autocast(nn.Conv2d(3, 2, 1), "bfloat16")(torch.rand(1, 3, 4, 4)).dtype == torch.float32


def test_refuses_other_types():
    with pytest.raises(ValueError, match="`dtype` must be float32, bfloat16 or float16, got 'int8'"):
        Autocast(nn.Identity(), "int8")


@pytest.mark.parametrize("capability", ["amx_bf16", "avx512_bf16", None])
def test_warns_where_bfloat16_is_emulated(monkeypatch, caplog, capability):
    capabilities = {"avx2": True, "amx_bf16": False, capability: True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)  # from PyTorch 2.9 on
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert has_bfloat16() == (capability is not None)
    Autocast(nn.Identity(), "float32"), Autocast(nn.Identity(), "bfloat16")
    assert len(caplog.records) == (capability is None)


def test_a_compiled_network_gives_the_same_values():
    torch.manual_seed(0)
    network, image = Pair(), torch.rand(1, 3, 4, 4)
    torch._dynamo.reset()
    for one, two in zip(Autocast(network, "float32", compile=True)(image), network(image)):
        torch.testing.assert_close(one, two)
