"""IBM, the implicit boundary mining block of IBDR.

An identity gives the published values at lower cost: the parallel 1x1, 3x3 and 5x5 convolutions and the 1x1 convolution
that mixes them are equivalent to a single 5x5 convolution. At inference it is computed once and cached until the
parameters change. In training it is computed, with its gradient, in each step if the features have enough positions for
it to pay off.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from .attention import ChannelAttention, SpatialAttention
from .fast.winograd import WinogradConv2d, is_inference


class ImplicitBoundaryMining(nn.Module):
    """IBM: convolutions of three sizes, sharpened by an edge map and by channel and spatial attention.

    ``m = fuse([conv1(x); conv3(x); conv5(x)])``, ``h = m * (1 + E(x))``, then channel and spatial attention on ``h``,
    then ``conv3x3(h + x)``. Two branches on the result, used only by the regularisers, predict boundaries and an
    embedding of each pixel (see ``losses.BoundaryRegularizedLoss``).

    Args:
        channels: number of channels ``C`` of the features, at least 16.
        embedding_channels: length of a pixel's embedding.
    """

    def __init__(self, channels: int, embedding_channels: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv5 = nn.Conv2d(channels, channels, 5, padding=2)
        self.fuse = nn.Conv2d(3 * channels, channels, 1, bias=False)
        self.edge = nn.Conv2d(channels, 1, 3, padding=1, bias=False)
        self.channel_attention = ChannelAttention(channels, channels // 16)
        self.spatial_attention = SpatialAttention()
        self.out_conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.boundary_branch = nn.Sequential(
            nn.Conv2d(channels, channels // 2, 3, padding=1), nn.ReLU(), nn.Conv2d(channels // 2, 1, 1)
        )
        self.embedding_branch = nn.Conv2d(channels, embedding_channels, 1)
        self._folded: tuple[tuple, WinogradConv2d] | None = None  # parameter state, folded convolution

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Fuse ``x``, (B, C, H, W).

        Returns:
            The fused features (B, C, H, W); in training followed by the boundary map (B, 1, H, W) and the embedding
            (B, 8, H, W), both unbounded.
        """
        if is_inference():
            mixed = self._one_convolution()(x)
        elif self._one_is_cheaper(x):
            weight, bias = self._fold(_mix_by_convolution)
            mixed = F.conv2d(x, weight, bias, padding=2)
        else:
            mixed = self.fuse(torch.cat([self.conv1(x), self.conv3(x), self.conv5(x)], dim=1))
        edge = torch.sigmoid(self.edge(x))  # (B, 1, H, W)
        mixed = mixed * (1 + edge)
        mixed = mixed * self.channel_attention(mixed)
        mixed = mixed * self.spatial_attention(mixed)
        fused = self.out_conv(mixed + x)
        return (fused, self.boundary_branch(fused), self.embedding_branch(fused)) if self.training else fused

    def __getstate__(self) -> dict:
        """Leave the folded convolution out of copies and pickles; a copy computes it on demand."""
        return self.__dict__ | {"_folded": None}

    def _one_is_cheaper(self, x: torch.Tensor) -> bool:
        """Whether the folded convolution, including the cost of folding, takes fewer multiplications than the four.

        For C channels and N positions the four take (1 + 9 + 25 + 3) C² N, the folded one 25 C² N, and folding 35 C³.
        """
        channels, positions = x.shape[1], x.numel() // x.shape[1]
        return 35 * channels < 13 * positions

    def _fold(self, mix: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight (C, C, 5, 5) and bias (C,) of the convolution equivalent to the four.

        Args:
            mix: multiplies matrices (C, C) and (C, N).
        """
        weight, bias = 0.0, 0.0
        convolutions = [self.conv1, self.conv3, self.conv5]
        for convolution, share in zip(convolutions, self.fuse.weight.flatten(1).chunk(3, dim=1), strict=True):
            mixed = mix(share, convolution.weight.flatten(1)).view_as(convolution.weight)
            weight = weight + F.pad(mixed, [2 - convolution.padding[0]] * 4)
            bias = bias + share @ convolution.bias
        return weight, bias

    def _one_convolution(self) -> WinogradConv2d:
        """The 5x5 convolution equivalent to the four, cached."""
        convolutions = [self.conv1, self.conv3, self.conv5]
        parameters = [self.fuse.weight, *(p for convolution in convolutions for p in convolution.parameters())]
        state = tuple((parameter.data_ptr(), parameter._version) for parameter in parameters)
        if self._folded is None or self._folded[0] != state:
            device = self.fuse.weight.device.type
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
                weight, bias = self._fold(torch.matmul)
                one = nn.Conv2d(*weight.shape[:2], 5, padding=2, device="meta")
                one.weight, one.bias = (nn.Parameter(tensor, requires_grad=False) for tensor in (weight, bias))
                self._folded = state, WinogradConv2d(one)
        return self._folded[1]


def _mix_by_convolution(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Multiply two matrices in the precision of the surrounding convolutions."""
    return F.conv2d(right[None, :, None], left[:, :, None, None])[0, :, 0]
