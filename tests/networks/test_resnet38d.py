import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scripts.networks import InputNormalization, ResNet38d
from scripts.networks.resnet38d import BottleneckBlock, ResidualBlock

# METHODS: stage, blocks, channels in, mid, out, stride of the first convolution, dilation
RESIDUAL_STAGES = [
    ("b2", 3, 64, 128, 128, 2, 1),
    ("b3", 3, 128, 256, 256, 2, 1),
    ("b4", 6, 256, 512, 512, 2, 1),
    ("b5", 3, 512, 512, 1024, 1, 2),
]
BOTTLENECKS = [("b6", 1024, 512, 1024, 2048, 0.3), ("b7", 2048, 1024, 2048, 4096, 0.5)]


def randomize_batch_norms(network, seed=0):
    """Weights, biases and running statistics that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2.0),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return network


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return randomize_batch_norms(ResNet38d()).eval()


def bn_relu(x, state, name):
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    scale = state[f"{name}.weight"] / torch.sqrt(var + 1e-5)
    shifted = (x - mean[:, None, None]) * scale[:, None, None] + state[f"{name}.bias"][:, None, None]
    return shifted.clamp(min=0)


def conv(x, state, name, stride=1, dilation=1):
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, stride=stride, dilation=dilation, padding=dilation * (weight.shape[2] // 2))


def residual(x, state, name, stride, dilations, changes_shape):
    activated = bn_relu(x, state, f"{name}bn_branch2a")
    shortcut = conv(activated, state, f"{name}conv_branch1", stride) if changes_shape else x
    y = conv(activated, state, f"{name}conv_branch2a", stride, dilations[0])
    return conv(bn_relu(y, state, f"{name}bn_branch2b1"), state, f"{name}conv_branch2b1", 1, dilations[1]) + shortcut


def bottleneck(x, state, name, dilation, dropout=0.0):
    """In evaluation mode for ``dropout`` 0, in training mode otherwise."""
    activated = bn_relu(x, state, f"{name}bn_branch2a")
    y = conv(activated, state, f"{name}conv_branch2a")
    y = F.dropout2d(bn_relu(y, state, f"{name}bn_branch2b1"), dropout)
    y = conv(y, state, f"{name}conv_branch2b1", 1, dilation)
    y = F.dropout2d(bn_relu(y, state, f"{name}bn_branch2b2"), dropout)
    return conv(y, state, f"{name}conv_branch2b2") + conv(activated, state, f"{name}conv_branch1")


def literal_features(image, state):
    """f1, f2, b6's output and f3, without a fusion block."""
    x = conv(image, state, "conv1a")
    features = []
    for stage, blocks, _, _, _, stride, dilation in RESIDUAL_STAGES:
        for block in range(blocks):
            first = block == 0
            first_dilation = 1 if first else dilation
            x = residual(x, state, f"{stage}.{block}.", stride if first else 1, (first_dilation, dilation), first)
        if stage == "b4":
            features.append(bn_relu(x, state, "bn45"))
        if stage == "b5":
            features.append(bn_relu(x, state, "bn52"))
    x = bottleneck(x, state, "b6.", 4)
    return [*features, x, bn_relu(bottleneck(x, state, "b7.", 4), state, "bn7")]


def expected_convolutions():
    """Name -> channels in, channels out, kernel, stride, dilation."""
    layers = {"conv1a": (3, 64, 3, 1, 1)}
    for stage, blocks, before, mid, after, stride, dilation in RESIDUAL_STAGES:
        layers[f"{stage}.0.conv_branch1"] = (before, after, 1, stride, 1)
        layers[f"{stage}.0.conv_branch2a"] = (before, mid, 3, stride, 1)
        layers[f"{stage}.0.conv_branch2b1"] = (mid, after, 3, 1, dilation)
        for block in range(1, blocks):
            layers[f"{stage}.{block}.conv_branch2a"] = (after, mid, 3, 1, dilation)
            layers[f"{stage}.{block}.conv_branch2b1"] = (mid, after, 3, 1, dilation)
    for name, before, quarter, half, after, _ in BOTTLENECKS:
        layers[f"{name}.conv_branch1"] = (before, after, 1, 1, 1)
        layers[f"{name}.conv_branch2a"] = (before, quarter, 1, 1, 1)
        layers[f"{name}.conv_branch2b1"] = (quarter, half, 3, 1, 4)
        layers[f"{name}.conv_branch2b2"] = (half, after, 1, 1, 1)
    return layers


def expected_batch_norms():
    """Name -> channels."""
    norms = {"bn45": 512, "bn52": 1024, "bn7": 4096}
    for stage, blocks, before, mid, after, _, _ in RESIDUAL_STAGES:
        for block in range(blocks):
            norms[f"{stage}.{block}.bn_branch2a"] = before if block == 0 else after
            norms[f"{stage}.{block}.bn_branch2b1"] = mid
    for name, before, quarter, half, _, _ in BOTTLENECKS:
        norms |= {f"{name}.bn_branch2a": before, f"{name}.bn_branch2b1": quarter, f"{name}.bn_branch2b2": half}
    return norms


def test_has_the_convolutions_of_the_table(network):
    found = {
        name: (m.in_channels, m.out_channels, *m.kernel_size, *m.stride, *m.dilation)
        for name, m in network.named_modules()
        if isinstance(m, nn.Conv2d)
    }
    assert found == {
        name: (before, after, kernel, kernel, stride, stride, dilation, dilation)
        for name, (before, after, kernel, stride, dilation) in expected_convolutions().items()
    }


def test_state_holds_the_layers_of_the_table_and_no_convolution_bias(network):
    shapes = {
        f"{name}.weight": (after, before, kernel, kernel)
        for name, (before, after, kernel, _, _) in expected_convolutions().items()
    }
    for name, channels in expected_batch_norms().items():
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == shapes


@torch.no_grad()
def test_features_are_those_of_a_literal_forward(network):
    image = torch.rand(1, 3, 33, 18, generator=torch.Generator().manual_seed(1))
    shallow, middle, x = network.levels(image)
    features = [shallow, middle, x, network.deepest(x)]
    # 5x3 cells at stride 8; 5 rows are more than the dilation of 4
    assert [tuple(f.shape[1:]) for f in features] == [(512, 5, 3), (1024, 5, 3), (2048, 5, 3), (4096, 5, 3)]
    for feature, expected in zip(features, literal_features(image, network.state_dict())):
        torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@torch.no_grad()
def test_a_fourth_level_comes_before_the_others_and_the_input_may_be_normalized(network):
    four = ResNet38d(num_levels=4, normalization=InputNormalization([0.4, 0.5, 0.6], [0.1, 0.2, 0.3]))
    four.load_state_dict(network.state_dict())
    four.eval()
    image = torch.rand(1, 3, 17, 24, generator=torch.Generator().manual_seed(1))
    early, *levels = four.levels(image)
    normalized = (image - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    x = network.conv1a(normalized)
    for block in (*network.b2, *network.b3):
        x = block(x)
    assert four.channels == (256, 512, 1024, 4096) and early.shape == (1, 256, 5, 6) and (early < 0).any()
    torch.testing.assert_close(early, x)
    for level, expected in zip(levels, network.levels(normalized), strict=True):
        torch.testing.assert_close(level, expected)


@pytest.mark.parametrize("num_levels", [2, 5])
def test_refuses_another_number_of_levels(num_levels):
    with pytest.raises(ValueError, match=f"`num_levels` must be 3 or 4, got {num_levels}"):
        ResNet38d(num_levels=num_levels)


@torch.no_grad()
@pytest.mark.parametrize(("name", "channels", "dropout"), [("b6", 1024, 0.3), ("b7", 2048, 0.5)])
def test_bottleneck_drops_channels_before_its_last_two_convolutions(network, name, channels, dropout):
    x = torch.randn(2, channels, 2, 2, generator=torch.Generator().manual_seed(2))
    state = {key: tensor for key, tensor in network.state_dict().items() if key.startswith(f"{name}.")}
    block = network.get_submodule(name)
    block.dropout.train()  # and the batch norms keep their statistics
    torch.manual_seed(3)
    dropped = block(x)
    block.eval()
    torch.manual_seed(3)
    torch.testing.assert_close(dropped, bottleneck(x, state, f"{name}.", 4, dropout), rtol=1e-4, atol=1e-4)
    assert (dropped - block(x)).abs().max() > 0.1


@torch.no_grad()
def test_bottleneck_dilates_its_3x3_convolution():
    block = randomize_batch_norms(BottleneckBlock(6, 8, dilation=4, dropout=0.5)).eval()
    x = torch.randn(2, 6, 11, 9)
    torch.testing.assert_close(block(x), bottleneck(x, block.state_dict(), "", 4), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("channels", "stride", "changes_shape"),
    [((6, 5, 6), 1, False), ((6, 5, 8), 1, True), ((6, 5, 6), 2, True), ((4, 5, 6), 2, True)],
)
@pytest.mark.parametrize("dilations", [(1, 1), (1, 2), (2, 2)])
def test_shortcut_is_raw_unless_the_shape_changes(channels, stride, changes_shape, dilations):
    block = randomize_batch_norms(ResidualBlock(*channels, stride, *dilations)).eval()
    x = torch.randn(2, channels[0], 7, 10)
    expected = residual(x, block.state_dict(), "", stride, dilations, changes_shape)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_checkpointing_gives_the_same_values_and_gradients():
    torch.manual_seed(0)
    image, gradients = torch.rand(1, 3, 16, 16), []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        network = ResNet38d(checkpointing).train()
        network.conv1a.requires_grad_(False)
        torch.manual_seed(2)  # dropout
        *levels, deep = network.levels(image)
        loss = sum(level.square().mean() for level in (*levels, network.deepest(deep)))
        loss.backward()
        gradients.append(
            {name: p.grad for name, p in network.named_parameters() if p.grad is not None} | {"loss": loss}
        )
    plain, again = gradients
    assert plain.keys() == again.keys() and "conv1a.weight" not in plain
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
