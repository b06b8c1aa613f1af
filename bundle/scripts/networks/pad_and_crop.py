"""Run a network that needs input sizes divisible by its stride on images of any size."""

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import BundleError


class PadAndCrop(nn.Module):
    """Pad an image to a multiple of ``divisor``, run ``network``, and crop its output back to the image's size.

    Padding replicates the right and bottom border; sizes that are already multiples are not padded.

    Args:
        network: maps (B, C, H, W) to (B, K, H, W), or to a tuple of such, for H and W divisible by ``divisor``.
        divisor: the network's stride in pixels.
        normalization: first layer, which normalises RGB in [0, 1] as in the network's pretraining; ``None`` for none.
    """

    def __init__(self, network: nn.Module, divisor: int, normalization: nn.Module | None = None) -> None:
        super().__init__()
        if divisor < 1:
            raise BundleError(f"`divisor` must be a positive number of pixels, got {divisor}.")
        self.network = network
        self.normalization = nn.Identity() if normalization is None else normalization
        self.divisor = divisor

    def forward(self, image: torch.Tensor):  # TorchScript has no type for "one or several", and infers it
        """Map ``image``, (B, 3, H, W) in [0, 1], to logits (B, K, H, W), or to a tuple of them, as the network does."""
        height, width = image.shape[-2], image.shape[-1]
        bottom, right = -height % self.divisor, -width % self.divisor
        if bottom > 0 or right > 0:
            image = F.pad(image, [0, right, 0, bottom], mode="replicate")
        logits = self.network(self.normalization(image))
        if isinstance(logits, tuple):
            return tuple([path[..., :height, :width] for path in logits])
        return logits[..., :height, :width]
