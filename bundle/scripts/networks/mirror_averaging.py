"""A segmentation network's mean over an image and its mirror images: tissue has no up or down, left or right."""

import torch
from torch import nn

MIRRORED_AXES = ((), (3,), (2,), (2, 3))


class MirrorAveraging(nn.Module):
    """The mean of a network's outputs for an image, its two mirror images and the image turned upside down.

    Takes four times as long. For inference: wrap what an engine runs, not what is saved.

    Args:
        network: maps (B, 3, H, W) to (B, K, H, W), and has no other outputs in evaluation mode.
        enabled: ``False`` runs the network as it is.
    """

    def __init__(self, network: nn.Module, enabled: bool = True) -> None:
        super().__init__()
        self.network = network
        self.enabled = enabled

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map ``image``, (B, 3, H, W), to the mean output, (B, K, H, W)."""
        if not self.enabled:
            return self.network(image)
        outputs = [self.network(image.flip(axes)).flip(axes) for axes in MIRRORED_AXES]
        return sum(outputs) / len(outputs)
