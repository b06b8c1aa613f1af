"""ESF, the edge-semantic synergy fusion block of ESFAN (MICCAI 2025); its COCA is ``ChannelAttention``.

Two identities give the published values at lower cost: the Laplacian summed over channels is the Laplacian of the
channel sum, and a 1x1 convolution commutes with bilinear upsampling, so PCI's convolution runs on the pooled grids (and
their upsampling, being linear, is one matrix product).
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .attention import ChannelAttention


class HybridEdgeAwareTransformer(nn.Module):
    """HEAT: attention to tissue edges, computed from the features and their Laplacian.

    Args:
        channels: number of channels ``C`` of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        laplacian = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
        self.register_buffer("laplacian", laplacian.view(1, 1, 3, 3), persistent=False)
        self.edge_conv = nn.Conv2d(channels + 1, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x``, (B, C, H, W), to the edge attention ``A``, (B, 1, H, W) in (0, 1)."""
        edges = F.conv2d(x.sum(dim=1, keepdim=True), self.laplacian, padding=1)  # (B, 1, H, W)
        return torch.sigmoid(self.edge_conv(torch.cat([x, edges], dim=1)))


class AdaptiveFusionGate(nn.Module):
    """AFG: one number per image that shifts the balance between edges and semantics.

    Args:
        channels: number of channels ``C`` of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x``, (B, C, H, W), to the gate ``g``, (B, 1, 1, 1) in (0, 1)."""
        return torch.sigmoid(self.conv(x.mean(dim=(2, 3), keepdim=True)))


class PyramidContextIntegrator(nn.Module):
    """PCI: context from adaptive average pooling at several sizes, concatenated to the features and mixed.

    Args:
        channels: number of channels ``C`` of the features.
        pool_sizes: side of each pooled grid, in cells.
    """

    def __init__(self, channels: int, pool_sizes: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.pool_sizes = tuple(pool_sizes)
        self.pools = nn.ModuleList(nn.AdaptiveAvgPool2d(size) for size in self.pool_sizes)
        self.conv = nn.Conv2d((1 + len(self.pool_sizes)) * channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x``, (B, C, H, W), to its context, (B, C, H, W), non-negative."""
        own_weight, *pool_weights = self.conv.weight.chunk(1 + len(self.pool_sizes), dim=1)  # each (C, C, 1, 1)
        mixed = F.conv2d(x, own_weight)
        cells, upsampling = [], []
        for size, pool, weight in zip(self.pool_sizes, self.pools, pool_weights, strict=True):
            cells.append(F.conv2d(pool(x), weight).flatten(2))  # (B, C, size²)
            each = torch.eye(size**2, dtype=mixed.dtype, device=x.device).view(1, size**2, size, size)
            each = F.interpolate(each, size=x.shape[2:], mode="bilinear", align_corners=True)
            upsampling.append(each[0].flatten(1))  # (size², H * W), a cell's contribution to each position
        context = torch.cat(upsampling).mT @ torch.cat(cells, dim=2).mT  # (B, H * W, C), all grids at once
        return F.relu(self.bn(mixed + context.mT.unflatten(2, x.shape[2:])), inplace=True)


class EdgeSemanticFusion(nn.Module):
    """ESF: edges (HEAT) and channel semantics (COCA), balanced by a gate (AFG), plus pyramid context (PCI).

    ``conv3x3(x * A * (1 + g) + x * w * (2 - g) + PCI(x))``.

    Args:
        channels: number of channels ``C`` of the features, at least 16.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heat = HybridEdgeAwareTransformer(channels)
        self.coca = ChannelAttention(channels, channels // 16)
        self.afg = AdaptiveFusionGate(channels)
        self.pci = PyramidContextIntegrator(channels)
        self.fusion_conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Fuse ``x``, (B, C, H, W), into (B, C, H, W)."""
        gate = self.afg(x)  # (B, 1, 1, 1)
        weight = self.heat(x) * (1 + gate) + self.coca(x) * (2 - gate)  # (B, C, H, W)
        return self.fusion_conv(torch.addcmul(self.pci(x), x, weight))
