import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scripts.networks import CAMClassifier, ImplicitBoundaryMining

NUM_CLASSES = 3


class TinyBackbone(nn.Module):
    """Three levels of 4, 6 and 8 channels; the fusion block acts on 5 channels before the deepest."""

    channels = (4, 6, 8)
    fusion_channels = 5

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4))
        self.middle = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(6, 5, 1)
        self.last = nn.Sequential(nn.Conv2d(5, 8, 1), nn.BatchNorm2d(8))

    def levels(self, image):
        shallow = self.stem(image).relu()
        middle = self.middle(shallow).relu()
        return shallow, middle, self.deep(middle)

    def deepest(self, x):
        return self.last(x).relu()


class Doubling(nn.Module):
    """A fusion block: twice its input, in training followed by the input and its square."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return (2 * x, x, x**2) if self.training else 2 * x


def make(**options):
    torch.manual_seed(0)
    return CAMClassifier(TinyBackbone(), NUM_CLASSES, **options)


def images(batch=2):
    return torch.rand(batch, 3, 9, 14, generator=torch.Generator().manual_seed(1))


def features(network, image):
    shallow, middle, x = network.backbone.levels(image)
    return shallow, middle, network.backbone.deepest(x)


def slow_map(feature, weight, bias=None):
    """A 1x1 convolution, pixel by pixel: (B, C, h, w) -> (B, K, h, w)."""
    batch, _, height, width = feature.shape
    result = torch.zeros(batch, weight.shape[0], height, width)
    for b in range(batch):
        for k in range(weight.shape[0]):
            for y in range(height):
                for x in range(width):
                    value = (weight[k, :, 0, 0] * feature[b, :, y, x]).sum()
                    result[b, k, y, x] = value if bias is None else value + bias[k]
    return result


@torch.no_grad()
def test_logits_are_pixel_means_of_the_heads_maps():
    network = make().eval()
    logits = network(images())
    heads = (network.shallow_head, network.middle_head, network.deep_head)
    assert len(logits) == 3
    for z, feature, head in zip(logits, features(network, images()), heads):
        torch.testing.assert_close(z, slow_map(feature, head.weight, head.bias).mean(dim=(2, 3)))


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_cams_are_the_positive_maps_of_the_weights_without_bias(training):
    network = make()
    network.shallow_head.bias.fill_(10)  # would leave nothing negative
    network.middle_head.bias.fill_(-10)
    network.train(training)
    cams, prob = network.cams(images())
    heads = (network.shallow_head, network.middle_head, network.deep_head)
    maps = [slow_map(feature, head.weight) for feature, head in zip(features(network, images()), heads)]
    for cam, expected in zip(cams, maps):
        assert (expected < 0).any() and (expected > 0).any()
        torch.testing.assert_close(cam, expected.clamp(min=0))
    torch.testing.assert_close(prob, 1 / (1 + torch.exp(-maps[2].mean(dim=(2, 3)))))


@torch.no_grad()
def test_probabilities_are_those_of_the_deepest_logits():
    network = make().eval()
    torch.testing.assert_close(network.cams(images())[1], torch.sigmoid(network(images())[2]))


def test_only_the_deepest_head_has_no_bias():
    network = make()
    assert network.shallow_head.bias is not None and network.middle_head.bias is not None
    assert network.deep_head.bias is None


def test_deepest_head_starts_xavier_uniform():
    torch.manual_seed(0)
    weights = torch.cat(
        [make().deep_head.weight.flatten()] + [CAMClassifier(TinyBackbone(), 9).deep_head.weight.flatten()]
    )
    bounds = {3: math.sqrt(6 / (8 + 3)), 9: math.sqrt(6 / (8 + 9))}
    for num_classes, part in zip((3, 9), weights.split([24, 72])):
        assert 0.85 * bounds[num_classes] < part.abs().max() <= bounds[num_classes]  # torch's default: 1 / sqrt(8)


@torch.no_grad()
def test_dropout_acts_on_the_deepest_features_in_training_alone():
    network = make(dropout=0.5)
    torch.manual_seed(2)
    logits = network.train()(images(8))
    shallow, middle, deep = features(network, images(8))
    torch.manual_seed(2)
    dropped = F.dropout2d(deep, 0.5)
    assert not torch.equal(dropped, deep)
    torch.testing.assert_close(logits[2], slow_map(dropped, network.deep_head.weight).mean(dim=(2, 3)))
    calm = network.eval()(images(8))
    torch.testing.assert_close(calm[2], slow_map(deep, network.deep_head.weight).mean(dim=(2, 3)))
    assert torch.equal(logits[0], calm[0]) and torch.equal(logits[1], calm[1])
    assert not torch.allclose(logits[2], calm[2])


def state_after_a_training_step(network):
    """The network's state before and after an SGD step in training mode."""
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    sum(z.sum() for z in network(images())[:3]).backward()
    optimizer.step()
    return before, network.state_dict()


def test_batch_norms_neither_learn_nor_count():
    network = make(fusion=Doubling)
    before, after = state_after_a_training_step(network)
    norms = [name for name in before if ".stem.1." in name or ".last.1." in name or ".norm." in name]
    assert len(norms) == 15
    assert all(torch.equal(before[name], after[name]) for name in norms)
    others = set(before) - set(norms)
    assert all(not torch.equal(before[name], after[name]) for name in others)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 3 and not any(norm.training for norm in norms)


def test_frozen_parts_keep_weights_and_statistics_while_others_learn():
    network = make(frozen=["backbone.stem", "backbone.deep"], freeze_batch_norm=False)
    before, after = state_after_a_training_step(network)
    frozen = {name for name in before if name.startswith(("backbone.stem.", "backbone.deep."))}
    assert len(frozen) == 9
    assert {name for name in before if torch.equal(before[name], after[name])} == frozen


def test_batch_norms_learn_where_they_are_let():
    network = make(freeze_batch_norm=False)
    before, after = state_after_a_training_step(network)
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_evaluation_and_training_mode_can_be_switched_again():
    network = make()
    network.train().eval().train()
    assert network.training and network.dropout.training
    assert not network.backbone.stem[1].training


@pytest.mark.parametrize("name", ["backbone.b2", "stem", "shallow_head.weight"])
def test_refuses_unknown_frozen_parts(name):
    with pytest.raises(ValueError, match=f"`frozen` must name submodules .*, got '{name}'.*'backbone.stem'"):
        make(frozen=["backbone.stem", name])


def test_fusion_block_acts_before_the_deepest_level_alone():
    network = make(fusion=Doubling).eval()
    assert network.fusion.channels == 5
    with torch.no_grad():
        shallow, middle, x = network.backbone.levels(images())
        deep = network.backbone.deepest(2 * x)
        logits = network(images())
        cams, _ = network.cams(images())
    torch.testing.assert_close(logits[0], network.shallow_head(shallow).mean(dim=(2, 3)))
    torch.testing.assert_close(logits[1], network.middle_head(middle).mean(dim=(2, 3)))
    torch.testing.assert_close(logits[2], network.deep_head(deep).mean(dim=(2, 3)))
    torch.testing.assert_close(cams[2], network.deep_head(deep).relu())


@torch.no_grad()
def test_side_outputs_follow_the_logits_in_training():
    network = make(fusion=Doubling).train()
    outputs = network(images())
    x = network.backbone.levels(images())[2]
    assert [tuple(z.shape) for z in outputs[:3]] == [(2, NUM_CLASSES)] * 3
    torch.testing.assert_close(outputs[3:], (x, x**2))
    assert len(network.eval()(images())) == 3
    cams, prob = network.train().cams(images())
    assert len(cams) == 3 and prob.shape == (2, NUM_CLASSES)


class WideBackbone(TinyBackbone):
    """The fusion block acts on 16 channels."""

    fusion_channels = 16

    def __init__(self):
        super().__init__()
        self.deep = nn.Conv2d(6, 16, 1)
        self.last = nn.Sequential(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8))


def make_with_ibm():
    torch.manual_seed(0)
    return CAMClassifier(WideBackbone(), NUM_CLASSES, fusion=ImplicitBoundaryMining)


@torch.no_grad()
def test_with_ibm_a_boundary_map_and_an_embedding_follow_the_logits_in_training():
    network = make_with_ibm().train()
    network.dropout.eval()
    outputs = network(images())
    x = network.backbone.levels(images())[2]
    fused, boundary, embedding = network.fusion(x)
    assert len(outputs) == 5
    torch.testing.assert_close(outputs[2], network.deep_head(network.backbone.deepest(fused)).mean(dim=(2, 3)))
    torch.testing.assert_close(outputs[3:], (boundary, embedding))
    assert outputs[3].shape == (2, 1, *x.shape[2:]) and outputs[4].shape == (2, 8, *x.shape[2:])
    calm = network.eval()(images())
    assert len(calm) == 3
    torch.testing.assert_close(calm, outputs[:3])


@pytest.mark.parametrize("training", [True, False])
def test_cams_do_not_depend_on_ibm_s_side_branches(training):
    network = make_with_ibm().train(training)
    cams, prob = network.cams(images())
    (sum(cam.sum() for cam in cams) + prob.sum()).backward()
    side = {name for name, _ in network.named_parameters() if name.startswith(("fusion.boundary", "fusion.embedding"))}
    assert len(side) == 6
    for name, parameter in network.named_parameters():
        if name in side:
            assert parameter.grad is None
            parameter.data.normal_()
        elif name.startswith("fusion."):
            assert parameter.grad.abs().max() > 0
    again, prob_again = network.cams(images())
    assert all(torch.equal(a, b) for a, b in zip((*cams, prob), (*again, prob_again)))


def test_refuses_no_class():
    with pytest.raises(ValueError, match="`num_classes` must be at least 1, got 0; background does not count"):
        CAMClassifier(TinyBackbone(), 0)


# --- four levels, rectified by the deepest


class FourLevels(TinyBackbone):
    channels = (5, 4, 6, 8)

    def __init__(self):
        super().__init__()
        self.early = nn.Conv2d(3, 5, 3, padding=1)

    def levels(self, image):
        return (self.early(image), *super().levels(image))


class Rectify(nn.Module):
    """Adds the sum of the deepest features to every value of a level."""

    def __init__(self, channels, guide_channels):
        super().__init__()
        self.channels = (channels, guide_channels)

    def forward(self, x, guide):
        return x + guide.sum(dim=(1, 2, 3), keepdim=True)


def four_levels(**options):
    torch.manual_seed(0)
    return CAMClassifier(FourLevels(), NUM_CLASSES, rectification=Rectify, dropout=0, **options)


@torch.no_grad()
def test_levels_before_the_deepest_are_rectified_by_it_and_all_are_supervised():
    network = four_levels().eval()
    assert [module.channels for module in network.rectifications] == [(5, 8), (4, 8), (6, 8)]
    *before, x = network.backbone.levels(images())
    deepest = network.backbone.deepest(x)
    levels = [level + deepest.sum(dim=(1, 2, 3), keepdim=True) for level in before] + [deepest]
    heads = (network.early_head, network.shallow_head, network.middle_head, network.deep_head)
    logits = network(images())
    assert len(logits) == 4
    for z, level, head in zip(logits, levels, heads):
        torch.testing.assert_close(z, slow_map(level, head.weight, head.bias).mean(dim=(2, 3)))


@torch.no_grad()
@pytest.mark.parametrize("cam_bias", [False, True])
def test_the_early_level_gives_no_cam_and_biases_count_if_asked_to(cam_bias):
    network = four_levels(cam_bias=cam_bias).eval()
    network.middle_head.bias.fill_(0.5)
    *before, x = network.backbone.levels(images())
    deepest = network.backbone.deepest(x)
    levels = [level + deepest.sum(dim=(1, 2, 3), keepdim=True) for level in before[1:]] + [deepest]
    heads = (network.shallow_head, network.middle_head, network.deep_head)
    cams, prob = network.cams(images())
    for cam, level, head in zip(cams, levels, heads, strict=True):
        torch.testing.assert_close(cam, slow_map(level, head.weight, head.bias if cam_bias else None).clamp(min=0))
    torch.testing.assert_close(prob, torch.sigmoid(network(images())[-1]))


def test_every_head_starts_xavier_uniform_if_asked_to():
    torch.manual_seed(0)
    network = CAMClassifier(FourLevels(), 40, xavier_heads=True)
    for name, channels in (("early", 5), ("shallow", 4), ("middle", 6), ("deep", 8)):
        bound = math.sqrt(6 / (channels + 40))
        assert 0.9 * bound < getattr(network, f"{name}_head").weight.abs().max() <= bound
