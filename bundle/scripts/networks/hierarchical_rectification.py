"""HFRM, the hierarchical feature rectification module of SSHR (MICCAI 2026)."""

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import BundleError

CONTEXT_PX = 15  # side of the context convolution, in cells of the level


class HierarchicalFeatureRectification(nn.Module):
    """Rectify a shallow level by the deepest features: ``x + gamma_veto * x * veto + gamma_context * context``.

    The veto weights the channels, from the mean of the deepest features: ``sigmoid(W2 ReLU(W1 mean(guide)))``. The
    context is a 15x15 convolution of each channel, which starts as the mean. Both factors start at 0, so that training
    starts from ``x`` itself.

    Args:
        channels: number of channels ``C`` of the level.
        guide_channels: number of channels ``D`` of the deepest features, at least 8.
    """

    def __init__(self, channels: int, guide_channels: int) -> None:
        super().__init__()
        if guide_channels < 8:
            raise BundleError(
                f"`guide_channels` must be at least 8, got {guide_channels}; choose a backbone with a wider last level."
            )
        self.squeeze = nn.Linear(guide_channels, guide_channels // 8, bias=False)
        self.excite = nn.Linear(guide_channels // 8, channels, bias=False)
        self.context = nn.Conv2d(channels, channels, CONTEXT_PX, padding=CONTEXT_PX // 2, groups=channels, bias=False)
        nn.init.constant_(self.context.weight, 1 / CONTEXT_PX**2)
        self.gamma_veto = nn.Parameter(torch.zeros(1))
        self.gamma_context = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
        """Rectify ``x``, (B, C, h, w), by the deepest features ``guide``, (B, D, h', w'); the result is like ``x``."""
        veto = torch.sigmoid(self.excite(F.relu(self.squeeze(guide.mean(dim=(2, 3))))))[:, :, None, None]
        return x + self.gamma_veto * x * veto + self.gamma_context * self.context(x)
