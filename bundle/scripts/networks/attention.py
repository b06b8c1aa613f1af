"""Weights for channels and for positions, as the fusion blocks of ESFAN and IBDR and IBDR's DPR network use them."""

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import BundleError


class ChannelAttention(nn.Module):
    """A weight for each channel, from the channels' means: ``sigmoid(W2 ReLU(W1 mean(x)))``.

    It is ESFAN's COCA (context channel amplifier), and the channel attention of IBDR's IBM and HDFM.

    Differs from the published code: in ESF and IBM its two linear layers are trained (there they are in no optimiser
    group).

    Args:
        channels: number of channels ``C`` of the features.
        hidden_channels: width of the hidden layer.
        bias: whether the two linear layers have biases.
    """

    def __init__(self, channels: int, hidden_channels: int, bias: bool = False) -> None:
        super().__init__()
        if hidden_channels < 1:
            raise BundleError(
                f"`hidden_channels` must be at least 1, got {hidden_channels} for {channels} channels; a fusion block "
                "takes a sixteenth of its channels, so its backbone must have 16 or more."
            )
        self.squeeze = nn.Linear(channels, hidden_channels, bias=bias)
        self.excite = nn.Linear(hidden_channels, channels, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x``, (B, C, H, W), to the channel weights, (B, C, 1, 1) in (0, 1)."""
        mean = x.mean(dim=(2, 3))  # (B, C)
        return torch.sigmoid(self.excite(F.relu(self.squeeze(mean))))[:, :, None, None]


class SpatialAttention(nn.Module):
    """A weight for each position, from the largest and the mean channel there, by a 7x7 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x``, (B, C, H, W), to the weights of the positions, (B, 1, H, W) in (0, 1)."""
        summary = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)  # (B, 2, H, W)
        return torch.sigmoid(self.conv(summary))
