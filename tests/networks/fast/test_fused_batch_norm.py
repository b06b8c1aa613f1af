import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from scripts.errors import BundleError
from scripts.networks import CAMClassifier, DualPathRefinement, PadAndCrop, ResNet38d, fuse_batch_norms


def randomized(network):
    """Batch norms as after training."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(module.bias, -0.5, 0.5, generator=generator)
    return network.eval()


@pytest.mark.parametrize("encoder", ["tu-tf_efficientnet_lite0", "tu-resnest26d"])
def test_the_same_values_without_a_batch_norm(encoder):
    torch.manual_seed(0)
    pspnet = smp.PSPNet(encoder, encoder_weights=None, encoder_depth=3, classes=3)
    network = randomized(PadAndCrop(DualPathRefinement(pspnet, 3), 8))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fast = fuse_batch_norms(network, [64, 64])
    in_use = fast.network.pspnet  # the auxiliary head takes no part in inference
    assert not any(isinstance(module, nn.BatchNorm2d) for module in in_use.modules())
    image = torch.rand(2, 3, 50, 70)
    with torch.no_grad():
        values, wanted = fast(image), network(image)
    assert (values - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_classifier_keeps_its_logits_and_the_norms_behind_a_sum():
    torch.manual_seed(0)
    network = randomized(CAMClassifier(ResNet38d(), 3))
    for parameter in network.parameters():
        parameter.data *= 0.7  # keeps the activations of 38 layers in range
    fast = fuse_batch_norms(network, [32, 32])
    left = {name for name, module in fast.named_modules() if isinstance(module, nn.BatchNorm2d)}
    # norms after a sum: the first of each block but the very first, whose input is the convolution of the stem
    blocks = {"b2": 3, "b3": 3, "b4": 6, "b5": 3}
    wanted = {f"backbone.{part}.{i}.bn_branch2a" for part, number in blocks.items() for i in range(number)}
    wanted |= {f"backbone.{name}" for name in ("bn45", "bn52", "bn7", "b6.bn_branch2a", "b7.bn_branch2a")}
    assert left == wanted - {"backbone.b2.0.bn_branch2a"}
    image = torch.rand(1, 3, 40, 24)
    with torch.no_grad():
        for values, expected in zip(fast.cams(image)[0], network.cams(image)[0]):
            assert (values - expected).abs().max() <= 1e-4 * expected.abs().max()


class Shortcut(nn.Module):
    """A convolution whose output goes past the batch norm too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)

    def forward(self, image):
        x = self.conv(image)
        return x + self.norm(x)


def test_refuses_networks_in_which_the_values_would_change():
    with pytest.raises(BundleError, match="the batch norms of `network` must be fusible, got outputs that differ"):
        fuse_batch_norms(randomized(Shortcut()), [8, 8])
