import pytest
import torch

from scripts.networks import ImplicitBoundaryMining

pytestmark = pytest.mark.usefixtures("one_thread")

CHANNELS = 32
SIZES = [(5, 7), (8, 6), (2, 3), (1, 1)]


def randomized(module, seed=0):
    """``module`` in double precision with parameters that are not the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.double().parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    return module


def features(height, width):
    return torch.randn(2, CHANNELS, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def literal_convolution(x, weight, bias=None):
    """A convolution that keeps the size, tap by tap; outside the image is 0."""
    height, width = x.shape[2:]
    side = weight.shape[2]
    padded = x.new_zeros(*x.shape[:2], height + side - 1, width + side - 1)
    padded[:, :, side // 2 : side // 2 + height, side // 2 : side // 2 + width] = x
    total = 0 if bias is None else bias[:, None, None]
    for row in range(side):
        for column in range(side):
            shifted = padded[:, :, row : row + height, column : column + width]
            total = total + torch.einsum("oc,bchw->bohw", weight[:, :, row, column], shifted)
    return total


def literal_ibm(x, p):
    """Fused features, boundary map and embedding, in the order and notation of the method's description."""
    parts = [literal_convolution(x, p[f"{name}.weight"], p[f"{name}.bias"]) for name in ("conv1", "conv3", "conv5")]
    m = literal_convolution(torch.cat(parts, dim=1), p["fuse.weight"])
    h = m * (1 + sigmoid(literal_convolution(x, p["edge.weight"])))
    mean = h.sum(dim=(2, 3)) / (h.shape[2] * h.shape[3])
    hidden = (mean @ p["channel_attention.squeeze.weight"].T).clamp(min=0)
    h = h * sigmoid(hidden @ p["channel_attention.excite.weight"].T)[:, :, None, None]
    summary = torch.stack([h.max(dim=1).values, h.sum(dim=1) / CHANNELS], dim=1)
    weight, bias = p["spatial_attention.conv.weight"], p["spatial_attention.conv.bias"]
    h = h * sigmoid(literal_convolution(summary, weight, bias))
    out = literal_convolution(h + x, p["out_conv.weight"])
    hidden = literal_convolution(out, p["boundary_branch.0.weight"], p["boundary_branch.0.bias"]).clamp(min=0)
    boundary = literal_convolution(hidden, p["boundary_branch.2.weight"], p["boundary_branch.2.bias"])
    return out, boundary, literal_convolution(out, p["embedding_branch.weight"], p["embedding_branch.bias"])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("training", [True, False])
def test_values_and_gradients_are_those_of_the_literal_formula(training, size):
    module = randomized(ImplicitBoundaryMining(CHANNELS)).train(training)
    x = features(*size).requires_grad_()
    outputs = module(x)
    assert isinstance(outputs, tuple if training else torch.Tensor)
    outputs = outputs if training else (outputs,)
    assert len(outputs) == (3 if training else 1)

    slow_x = x.detach().clone().requires_grad_()
    slow = {name: parameter.detach().clone().requires_grad_() for name, parameter in module.named_parameters()}
    slow_outputs = literal_ibm(slow_x, slow)[: len(outputs)]
    for output, expected in zip(outputs, slow_outputs):
        torch.testing.assert_close(output, expected)

    sum((output**2).mean() for output in outputs).backward()
    sum((output**2).mean() for output in slow_outputs).backward()
    torch.testing.assert_close(x.grad, slow_x.grad)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, slow[name].grad, msg=lambda text: f"{name}: {text}")


def test_evaluation_leaves_the_side_branches_out():
    module = ImplicitBoundaryMining(16).eval()
    calls = []
    for branch in (module.boundary_branch, module.embedding_branch):
        branch.register_forward_hook(lambda *call: calls.append(call))
    module(torch.zeros(1, 16, 2, 2))
    assert not calls
    module.train()(torch.zeros(1, 16, 2, 2))
    assert len(calls) == 2


def test_biases_and_reduction_are_those_published():
    shapes = {name: tuple(parameter.shape) for name, parameter in ImplicitBoundaryMining(48).named_parameters()}
    assert shapes == {
        "conv1.weight": (48, 48, 1, 1),
        "conv1.bias": (48,),
        "conv3.weight": (48, 48, 3, 3),
        "conv3.bias": (48,),
        "conv5.weight": (48, 48, 5, 5),
        "conv5.bias": (48,),
        "fuse.weight": (48, 144, 1, 1),
        "edge.weight": (1, 48, 3, 3),
        "channel_attention.squeeze.weight": (3, 48),
        "channel_attention.excite.weight": (48, 3),
        "spatial_attention.conv.weight": (1, 2, 7, 7),
        "spatial_attention.conv.bias": (1,),
        "out_conv.weight": (48, 48, 3, 3),
        "boundary_branch.0.weight": (24, 48, 3, 3),
        "boundary_branch.0.bias": (24,),
        "boundary_branch.2.weight": (1, 24, 1, 1),
        "boundary_branch.2.bias": (1,),
        "embedding_branch.weight": (8, 48, 1, 1),
        "embedding_branch.bias": (8,),
    }
    assert not list(ImplicitBoundaryMining(16).buffers())


def test_length_of_the_embedding_can_be_chosen():
    module = randomized(ImplicitBoundaryMining(CHANNELS, embedding_channels=3)).train()
    x = features(4, 3)
    expected = literal_ibm(x, dict(module.named_parameters()))
    assert module(x)[2].shape == (2, 3, 4, 3)
    torch.testing.assert_close(module(x), expected)


def test_refuses_fewer_channels_than_the_reduction():
    with pytest.raises(ValueError, match="`hidden_channels` must be at least 1, got 0 for 15 channels.* 16 or more"):
        ImplicitBoundaryMining(15)


@pytest.mark.parametrize("size", SIZES)
def test_one_folded_convolution_gives_the_values_of_the_four(size):
    block = randomized(ImplicitBoundaryMining(CHANNELS)).float().eval()
    names = set(block.state_dict())
    x = torch.randn(2, CHANNELS, *size, generator=torch.Generator().manual_seed(0))
    four = block(x).detach()
    with torch.inference_mode():
        one = block(x)
    torch.testing.assert_close(one, four, rtol=1e-4, atol=1e-4 * four.abs().max().item())
    assert set(block.state_dict()) == names  # what is folded is not saved


def test_the_folded_convolution_follows_the_parameters():
    block = randomized(ImplicitBoundaryMining(CHANNELS)).float().eval()
    x = torch.randn(1, CHANNELS, 4, 4, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(block.parameters(), lr=1e-3)
    for change in (
        lambda: optimizer.step(),
        lambda: block.load_state_dict(randomized(ImplicitBoundaryMining(CHANNELS), seed=1).state_dict()),
        lambda: setattr(block, "conv3", torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)),
        lambda: block.double(),
    ):
        with torch.no_grad():
            block(x)
        block(x).square().sum().backward()
        change()
        x = x.to(block.fuse.weight.dtype)
        with torch.no_grad():
            folded = block(x)
        torch.testing.assert_close(folded, block(x).detach(), rtol=1e-4, atol=1e-3)
