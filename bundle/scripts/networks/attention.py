"""Channel and spatial attention, used by the fusion blocks of ESFAN and IBDR and by IBDR's DPR network."""

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import BundleError


class ChannelAttention(nn.Module):
    """Weight each channel by its global context: ``sigmoid(W2 ReLU(W1 mean(x)))``.

    This is ESFAN's COCA (context channel amplifier) and the channel attention of IBDR's IBM and HDFM.

    Differs from the published code: in ESF and IBM the two linear layers are trained (there they are in none of the
    optimiser's parameter groups).

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
                "uses a sixteenth of its channels, so choose a backbone with 16 or more."
            )
        self.squeeze = nn.Linear(channels, hidden_channels, bias=bias)
        self.excite = nn.Linear(hidden_channels, channels, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x``, (B, C, H, W), to the channel weights, (B, C, 1, 1) in (0, 1)."""
        mean = x.mean(dim=(2, 3))  # (B, C)
        return torch.sigmoid(self.excite(F.relu(self.squeeze(mean))))[:, :, None, None]


class SpatialAttention(nn.Module):
    """Weight each position by a 7x7 convolution over the channel-wise maximum and mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x``, (B, C, H, W), to the spatial weights, (B, 1, H, W) in (0, 1)."""
        summary = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)  # (B, 2, H, W)
        return torch.sigmoid(self.conv(summary))
