import pytest
import timm
import torch

from scripts.networks import TimmBackbone

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "output_stride", "strides", "channels", "normalization"),
    [
        ("resnet18", 8, (8, 8, 8), (128, 256, 512), IMAGENET),
        ("resnet18", 16, (8, 16, 16), (128, 256, 512), IMAGENET),
        ("tf_efficientnet_lite0", 16, (8, 16, 16), (40, 112, 320), HALF),
    ],
)
def test_levels_are_the_last_three_of_timm_s_model(name, output_stride, strides, channels, normalization):
    backbone = TimmBackbone(name, output_stride).eval()
    image = torch.rand(1, 3, 64, 96)
    levels = backbone.levels(image)

    model = timm.create_model(name, features_only=True, output_stride=output_stride).eval()
    model.load_state_dict(backbone.model.state_dict())
    mean, std = (torch.tensor(constants).view(1, 3, 1, 1) for constants in normalization)
    expected = model((image - mean) / std)[-3:]
    for level, feature, stride, width in zip(levels, expected, strides, channels):
        assert level.shape == (1, width, 64 // stride, 96 // stride)
        torch.testing.assert_close(level, feature)
    assert backbone.channels == channels and backbone.fusion_channels == channels[-1]


@torch.no_grad()
def test_a_fourth_level_comes_before_the_others():
    three, four = TimmBackbone("resnet18", 16).eval(), TimmBackbone("resnet18", 16, num_levels=4).eval()
    three.load_state_dict(four.state_dict())
    image = torch.rand(1, 3, 64, 96)
    early, *levels = four.levels(image)
    assert four.channels == (64, *three.channels) and early.shape == (1, 64, 16, 24)
    for level, expected in zip(levels, three.levels(image), strict=True):
        assert torch.equal(level, expected)


def test_keeps_the_deepest_level_as_it_is():
    x = torch.randn(1, 4, 2, 2)
    assert torch.equal(TimmBackbone("resnet18").deepest(x), x)


@pytest.mark.parametrize("name", ["resnet51", "", "resnet18.a1_in1k", "no/such model"])
def test_refuses_names_that_timm_does_not_know(name):
    with pytest.raises(ValueError, match=f"`name` must be a timm model such as 'resnet50', got '{name}'"):
        TimmBackbone(name)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "densenet121", "vgg11"])
def test_refuses_models_without_an_output_stride(name):
    with pytest.raises(ValueError, match=f"accepts `output_stride` 8, got '{name}'; use a ResNet"):
        TimmBackbone(name)


@pytest.mark.parametrize("output_stride", [1, 3, 64])
def test_refuses_strides_that_no_model_has(output_stride):
    with pytest.raises(ValueError, match=f"`output_stride` must be 8, 16 or 32 pixels, got {output_stride}"):
        TimmBackbone("resnet18", output_stride)
