import copy

import pytest
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional as F

from scripts.networks import DualPathRefinement, HierarchicalDualFeatureModule, PadAndCrop

pytestmark = pytest.mark.usefixtures("one_thread")


def randomize(module, seed=0):
    """Parameters and batch norm statistics that are not the initial ones; HDFM's hidden unit is alive."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.3, generator=generator)
        if name.endswith("squeeze.bias"):
            tensor.fill_(2.0)
    return module


def make(num_classes=2, depth=3, psp_dropout=0.0, **options):
    """A small network in double precision."""
    torch.manual_seed(0)
    pspnet = smp.PSPNet(
        "resnet18",
        encoder_weights=None,
        encoder_depth=depth,
        psp_out_channels=16,
        psp_dropout=psp_dropout,
        classes=num_classes,
        upsampling=2**depth,
    )
    network = DualPathRefinement(pspnet, num_classes, **({"hidden_channels": 12, "dropout": 0.0} | options))
    randomize(network.hdfm)
    randomize(network.auxiliary_head)
    return network.double()


def images(height, width, batch=3):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def literal_convolution(x, weight, bias):
    """A convolution that keeps the size, tap by tap; outside the image is 0."""
    height, width = x.shape[2:]
    side = weight.shape[2]
    padded = x.new_zeros(*x.shape[:2], height + side - 1, width + side - 1)
    padded[:, :, side // 2 : side // 2 + height, side // 2 : side // 2 + width] = x
    total = bias[:, None, None]
    for row in range(side):
        for column in range(side):
            shifted = padded[:, :, row : row + height, column : column + width]
            total = total + torch.einsum("oc,bchw->bohw", weight[:, :, row, column], shifted)
    return total


def literal_hdfm(logits, p, prefix=""):
    mean = logits.sum(dim=(2, 3)) / (logits.shape[2] * logits.shape[3])
    hidden = mean @ p[f"{prefix}channel_attention.squeeze.weight"].T + p[f"{prefix}channel_attention.squeeze.bias"]
    excited = hidden.clamp(min=0) @ p[f"{prefix}channel_attention.excite.weight"].T
    logits = logits * sigmoid(excited + p[f"{prefix}channel_attention.excite.bias"])[:, :, None, None]
    summary = torch.stack([logits.max(dim=1).values, logits.sum(dim=1) / logits.shape[1]], dim=1)
    weight, bias = p[f"{prefix}spatial_attention.conv.weight"], p[f"{prefix}spatial_attention.conv.bias"]
    return logits * sigmoid(literal_convolution(summary, weight, bias))


def literal_interpolation(size_in, size_out):
    """(size_out, size_in) matrix of linear interpolation, the corner pixels' centres aligned."""
    matrix = torch.zeros(size_out, size_in, dtype=torch.float64)
    for i in range(size_out):
        position = i * (size_in - 1) / (size_out - 1)
        low = min(int(position), size_in - 1)
        matrix[i, low] += 1 - (position - low)
        matrix[i, min(low + 1, size_in - 1)] += position - low
    return matrix


def literal_auxiliary(features, p, size, dropout=0.0):
    """conv3x3, BN with the batch's statistics, ReLU, dropout of channels, conv1x1, upsampling."""
    mixed = literal_convolution(features, p["auxiliary_head.0.weight"], p["auxiliary_head.0.bias"])
    mean = mixed.mean(dim=(0, 2, 3), keepdim=True)
    variance = ((mixed - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    weight, bias = (p[f"auxiliary_head.1.{name}"][:, None, None] for name in ("weight", "bias"))
    hidden = ((mixed - mean) / torch.sqrt(variance + 1e-5) * weight + bias).clamp(min=0)
    hidden = F.dropout2d(hidden, dropout)
    low = literal_convolution(hidden, p["auxiliary_head.4.weight"], p["auxiliary_head.4.bias"])
    rows, columns = (literal_interpolation(*pair) for pair in zip(low.shape[2:], size))
    return torch.einsum("yh,bkhw,xw->bkyx", rows, low, columns)


@pytest.mark.parametrize("size", [(5, 7), (4, 4), (2, 9), (1, 1)])
@pytest.mark.parametrize("num_classes", [2, 4, 33])
def test_hdfm_values_and_gradients_are_those_of_the_literal_formula(num_classes, size):
    module = randomize(HierarchicalDualFeatureModule(num_classes).double())
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, num_classes, *size, generator=generator, dtype=torch.float64).requires_grad_()
    refined = module(logits)
    (refined**2).sum().backward()
    slow_logits = logits.detach().clone().requires_grad_()
    slow = {name: parameter.detach().clone().requires_grad_() for name, parameter in module.named_parameters()}
    expected = literal_hdfm(slow_logits, slow)
    (expected**2).sum().backward()
    torch.testing.assert_close(refined, expected)
    torch.testing.assert_close(logits.grad, slow_logits.grad)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, slow[name].grad)
        assert parameter.grad.abs().max() > 1e-6


@pytest.mark.parametrize(
    ("num_classes", "size", "depth"), [(2, (24, 40), 3), (4, (16, 8), 3), (2, (8, 8), 3), (4, (8, 20), 2)]
)
def test_training_gives_both_paths_with_their_gradients(num_classes, size, depth):
    network = make(num_classes, depth).train()
    slow = copy.deepcopy(network)
    main, auxiliary = network(images(*size))

    p = dict(slow.named_parameters())
    slow_main = literal_hdfm(slow.pspnet(images(*size)), p, "hdfm.")
    slow_auxiliary = literal_auxiliary(slow.pspnet.encoder(images(*size))[-1], p, size)
    assert main.shape == auxiliary.shape == (3, num_classes, *size)
    torch.testing.assert_close(main, slow_main)
    torch.testing.assert_close(auxiliary, slow_auxiliary)

    ((main**2).mean() + 0.4 * (auxiliary**2).mean()).backward()
    ((slow_main**2).mean() + 0.4 * (slow_auxiliary**2).mean()).backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, p[name].grad, rtol=1e-5, atol=1e-9)
        if name.startswith(("hdfm", "auxiliary_head.4")):
            assert parameter.grad.abs().max() > 1e-6


@torch.no_grad()
@pytest.mark.parametrize("size", [(24, 40), (8, 8)])
def test_evaluation_gives_the_main_path_alone(size):
    network = make().eval()
    calls = []
    network.auxiliary_head.register_forward_hook(lambda *call: calls.append(call))
    main = network(images(*size))
    assert isinstance(main, torch.Tensor) and not calls
    torch.testing.assert_close(
        main, literal_hdfm(network.pspnet(images(*size)), dict(network.named_parameters()), "hdfm.")
    )


@pytest.mark.parametrize("training", [True, False])
def test_encoder_runs_once(training):
    network = make().train(training)
    calls = []
    network.pspnet.encoder.register_forward_hook(lambda *call: calls.append(call))
    network(images(16, 16))
    assert len(calls) == 1


def test_batch_norms_are_updated_once_per_step():
    network = make().train()
    pspnet = copy.deepcopy(network.pspnet)
    network(images(16, 24))
    pspnet(images(16, 24))
    after, expected = dict(network.pspnet.named_buffers()), dict(pspnet.named_buffers())
    assert after["encoder.bn1.num_batches_tracked"] == 1
    assert len(after) == len(expected) > 30
    for name, buffer in after.items():
        torch.testing.assert_close(buffer, expected[name])
    assert network.auxiliary_head[1].num_batches_tracked == 1


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {}])
def test_auxiliary_path_drops_whole_channels_in_training(options):
    torch.manual_seed(0)
    pspnet = smp.PSPNet(
        "resnet18", encoder_weights=None, encoder_depth=3, psp_out_channels=16, psp_dropout=0, classes=2
    )
    network = DualPathRefinement(pspnet, 2, **options).double().train()
    randomize(network.auxiliary_head)
    features = copy.deepcopy(network.pspnet.encoder)(images(24, 16))[-1]
    torch.manual_seed(2)
    _, auxiliary = network(images(24, 16))
    torch.manual_seed(2)
    expected = literal_auxiliary(features, dict(network.named_parameters()), (24, 16), options.get("dropout", 0.1))
    torch.testing.assert_close(auxiliary, expected)
    assert (expected - literal_auxiliary(features, dict(network.named_parameters()), (24, 16))).abs().max() > 0.1


def test_parameters_are_those_published():
    pspnet = smp.PSPNet("resnet18", encoder_weights=None, encoder_depth=3, classes=2)
    shapes = {name: tuple(parameter.shape) for name, parameter in DualPathRefinement(pspnet, 2).named_parameters()}
    assert {name: shape for name, shape in shapes.items() if not name.startswith("pspnet.")} == {
        "hdfm.channel_attention.squeeze.weight": (1, 2),
        "hdfm.channel_attention.squeeze.bias": (1,),
        "hdfm.channel_attention.excite.weight": (2, 1),
        "hdfm.channel_attention.excite.bias": (2,),
        "hdfm.spatial_attention.conv.weight": (1, 2, 7, 7),
        "hdfm.spatial_attention.conv.bias": (1,),
        "auxiliary_head.0.weight": (256, 128, 3, 3),
        "auxiliary_head.0.bias": (256,),
        "auxiliary_head.1.weight": (256,),
        "auxiliary_head.1.bias": (256,),
        "auxiliary_head.4.weight": (2, 256, 1, 1),
        "auxiliary_head.4.bias": (2,),
    }
    own = {f"pspnet.{name}": tuple(parameter.shape) for name, parameter in pspnet.named_parameters()}
    assert {name: shape for name, shape in shapes.items() if name.startswith("pspnet.")} == own


@pytest.mark.parametrize(("num_classes", "hidden"), [(1, 1), (15, 1), (16, 1), (32, 2), (47, 2)])
def test_hdfm_s_hidden_width_is_a_sixteenth_but_at_least_one(num_classes, hidden):
    module = HierarchicalDualFeatureModule(num_classes)
    assert module.channel_attention.squeeze.weight.shape == (hidden, num_classes)


def test_takes_images_of_any_size_when_padded():
    network = make().train()
    image = images(13, 22)
    padded = F.pad(image, [0, 2, 0, 3], mode="replicate")
    expected = copy.deepcopy(network)(padded)
    paths = PadAndCrop(network, divisor=8)(image)
    assert isinstance(paths, tuple) and len(paths) == 2
    for path, whole in zip(paths, expected):
        torch.testing.assert_close(path, whole[..., :13, :22])
