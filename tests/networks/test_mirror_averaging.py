import torch
from torch import nn

from scripts.networks import MirrorAveraging


def test_the_mean_over_mirror_images():
    torch.manual_seed(0)
    network, image = nn.Conv2d(3, 2, 3, padding=1), torch.rand(2, 3, 5, 7)
    expected = network(image).detach().double()
    for axes in ([3], [2], [2, 3]):
        turned = torch.stack([x.flip([axis - 1 for axis in axes]) for x in image])
        expected += network(turned).detach().double().flip(axes)
    torch.testing.assert_close(MirrorAveraging(network)(image), (expected / 4).float())


def test_mirrored_images_have_mirrored_outputs():
    torch.manual_seed(0)
    network, image = MirrorAveraging(nn.Conv2d(3, 2, 3, padding=1)), torch.rand(1, 3, 4, 6)
    torch.testing.assert_close(network(image.flip(3)), network(image).flip(3))
    torch.testing.assert_close(network(image.flip(2)), network(image).flip(2))


def test_disabled_it_is_the_network():
    network, image = nn.Conv2d(3, 2, 3, padding=1), torch.rand(1, 3, 4, 6)
    assert torch.equal(MirrorAveraging(network, enabled=False)(image), network(image))
