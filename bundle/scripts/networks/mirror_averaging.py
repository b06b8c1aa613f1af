"""Test-time augmentation by flips: tissue has no preferred orientation."""

import torch
from torch import nn

MIRRORED_AXES = ((), (3,), (2,), (2, 3))


class MirrorAveraging(nn.Module):
    """Average a network's outputs over an image, its horizontal and vertical flips, and both flips together.

    Takes four times as long. For inference: wrap the network that an engine runs, not the one that is saved.

    Args:
        network: maps (B, 3, H, W) to (B, K, H, W), and has no other outputs in evaluation mode.
        enabled: ``False`` runs the network once, without flips.
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
