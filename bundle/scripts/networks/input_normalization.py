"""Input normalisation of a pretrained network, as its first layer."""

from collections.abc import Sequence

import torch
from torch import nn

from ..errors import BundleError


class InputNormalization(nn.Module):
    """Normalise RGB in [0, 1] per channel: ``(image - mean) / std``.

    The constants belong to the pretrained weights and are never trained. They are not part of the state dict, so
    published state dicts load unchanged.

    Args:
        mean: mean of each channel, in [0, 1].
        std: standard deviation of each channel, above 0.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise BundleError(
                f"`mean` and `std` must have one number per channel and `std` must be positive, got {mean} and {std}."
            )
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Normalise ``image``, (B, C, H, W) in [0, 1]."""
        return (image - self.mean) / self.std
