import numpy as np
import pytest
import torch
from torch import nn

from scripts.networks import InputNormalization, PadAndCrop


class BlockMeans(nn.Module):
    """The mean of each block of ``side`` pixels, at every pixel of the block; refuses sizes that do not fit."""

    def __init__(self, side):
        super().__init__()
        self.side = side
        self.seen = None

    def forward(self, image):
        self.seen = image
        batch, channels, height, width = image.shape
        if height % self.side or width % self.side:
            raise RuntimeError(f"size {height}x{width} does not fit")
        blocks = image.view(batch, channels, height // self.side, self.side, width // self.side, self.side)
        return blocks.mean(dim=(3, 5), keepdim=True).expand_as(blocks).reshape(image.shape)


def literal(image, side):
    """NumPy: replicate the border to the right and below, average the blocks, crop."""
    height, width = image.shape[2:]
    bottom, right = (side - height % side) % side, (side - width % side) % side
    padded = np.pad(image.numpy().astype(np.float64), [(0, 0), (0, 0), (0, bottom), (0, right)], mode="edge")
    result = np.empty_like(padded)
    for top in range(0, padded.shape[2], side):
        for left in range(0, padded.shape[3], side):
            block = padded[:, :, top : top + side, left : left + side]
            result[:, :, top : top + side, left : left + side] = block.mean(axis=(2, 3), keepdims=True)
    return result[:, :, :height, :width]


@pytest.mark.parametrize("size", [(8, 4), (5, 7), (4, 9), (7, 4), (1, 1), (3, 11)])
def test_replicates_the_border_and_crops_the_answer(size):
    image = torch.rand(2, 3, *size)
    logits = PadAndCrop(BlockMeans(4), divisor=4)(image)
    np.testing.assert_allclose(logits.numpy(), literal(image, 4), atol=1e-6)


class TwoPaths(BlockMeans):
    """The block means, and of their first channel the double."""

    def forward(self, image):
        means = super().forward(image)
        return means, 2 * means[:, :1]


@pytest.mark.parametrize("size", [(8, 4), (5, 7), (4, 9), (1, 1), (3, 11)])
def test_crops_each_answer_of_a_network_with_several(size):
    image = torch.rand(2, 3, *size)
    paths = PadAndCrop(TwoPaths(4), divisor=4)(image)
    assert isinstance(paths, tuple) and len(paths) == 2
    np.testing.assert_allclose(paths[0].numpy(), literal(image, 4), atol=1e-6)
    np.testing.assert_allclose(paths[1].numpy(), 2 * literal(image, 4)[:, :1], atol=1e-6)


def test_leaves_sizes_that_fit_untouched():
    image = torch.rand(1, 3, 8, 12)
    network = BlockMeans(4)
    PadAndCrop(network, divisor=4)(image)
    assert torch.equal(network.seen, image)


def test_normalizes_what_the_network_sees():
    image = torch.rand(1, 3, 3, 5)
    network = BlockMeans(2)
    PadAndCrop(network, 2, InputNormalization([0.5, 0.4, 0.3], [0.1, 0.2, 0.4]))(image)
    for channel, (mean, std) in enumerate([(0.5, 0.1), (0.4, 0.2), (0.3, 0.4)]):
        expected = (image[0, channel] - mean) / std
        torch.testing.assert_close(network.seen[0, channel, :3, :5], expected)
        torch.testing.assert_close(network.seen[0, channel, 3, :5], expected[2])  # the border too
        torch.testing.assert_close(network.seen[0, channel, :3, 5], expected[:, 4])


def test_gradients_reach_the_network_through_the_crop():
    network = nn.Conv2d(1, 1, 1)
    PadAndCrop(network, divisor=4)(torch.ones(1, 1, 3, 5)).sum().backward()
    assert network.weight.grad.item() == 15  # 3x5 pixels, not the 4x8 padded ones


def test_refuses_a_divisor_below_one():
    with pytest.raises(ValueError, match="`divisor` must be a positive number of pixels, got 0"):
        PadAndCrop(nn.Identity(), divisor=0)
