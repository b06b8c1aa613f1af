"""ResNet38d: Wide-ResNet-38 (model A1), dilated to output stride 8.

Architecture: Wu, Shen and van den Hengel, "Wider or Deeper: Revisiting the ResNet Model for Visual Recognition" (2016);
dilated as in the backbone of ESFAN, IBDR and SSHR. Layer names are those of the released ImageNet weights
(``bn_branch2a``, ``conv_branch2b1``, ...).
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..errors import BundleError


class ResidualBlock(nn.Module):
    """Pre-activation residual block of two 3x3 convolutions; the first has the stride.

    Args:
        in_channels, mid_channels, out_channels: channels before, between and after the convolutions.
        stride: stride of the first convolution.
        first_dilation, dilation: dilation of the first and the second convolution.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        stride: int = 1,
        first_dilation: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(in_channels)
        self.conv_branch2a = nn.Conv2d(
            in_channels, mid_channels, 3, stride, padding=first_dilation, dilation=first_dilation, bias=False
        )
        self.bn_branch2b1 = nn.BatchNorm2d(mid_channels)
        self.conv_branch2b1 = nn.Conv2d(mid_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False)
        changes_shape = stride != 1 or in_channels != out_channels
        self.conv_branch1 = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if changes_shape else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x``, (B, in, H, W), to (B, out, H / stride, W / stride)."""
        activated = F.relu(self.bn_branch2a(x), inplace=True)
        shortcut = x if self.conv_branch1 is None else self.conv_branch1(activated)
        x = self.conv_branch2a(activated)
        x = self.conv_branch2b1(F.relu(self.bn_branch2b1(x), inplace=True))
        return x.add_(shortcut)


class BottleneckBlock(nn.Module):
    """Pre-activation bottleneck: 1x1 to out/4, dilated 3x3 to out/2, 1x1 to out, with dropout before the last two.

    Args:
        in_channels, out_channels: channels before and after the block.
        dilation: dilation of the 3x3 convolution.
        dropout: probability of dropping a channel.
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int, dropout: float) -> None:
        super().__init__()
        quarter, half = out_channels // 4, out_channels // 2
        self.bn_branch2a = nn.BatchNorm2d(in_channels)
        self.conv_branch2a = nn.Conv2d(in_channels, quarter, 1, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(quarter)
        self.conv_branch2b1 = nn.Conv2d(quarter, half, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn_branch2b2 = nn.BatchNorm2d(half)
        self.conv_branch2b2 = nn.Conv2d(half, out_channels, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x``, (B, in, H, W), to (B, out, H, W)."""
        activated = F.relu(self.bn_branch2a(x), inplace=True)
        x = self.conv_branch2a(activated)
        x = self.conv_branch2b1(self.dropout(F.relu(self.bn_branch2b1(x), inplace=True)))
        x = self.conv_branch2b2(self.dropout(F.relu(self.bn_branch2b2(x), inplace=True)))
        return x.add_(self.conv_branch1(activated))


def _residual_stage(
    blocks: int, in_channels: int, mid_channels: int, out_channels: int, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """A stage of residual blocks; the first changes the shape, and its first convolution is not dilated."""
    first = ResidualBlock(in_channels, mid_channels, out_channels, stride, 1, dilation)
    rest = [ResidualBlock(out_channels, mid_channels, out_channels, 1, dilation, dilation) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


class ResNet38d(nn.Module):
    """Backbone with three feature levels at stride 8: 512, 1024 and 4096 channels, all after batch norm and ReLU.

    ``levels`` stops before the last block (b7), where a fusion block with 2048 channels can be inserted; ``deepest``
    runs the rest.

    Args:
        checkpointing: gradient checkpointing: recompute the activations within the residual blocks in the backward pass
            instead of storing them. Same values, less memory, more time.
        num_levels: 3, or 4 for one more level before those: b3's output, 256 channels at stride 4, as it is.
        normalization: applied to the input, RGB in [0, 1]; ``None`` leaves it as it is, as in ESFAN and IBDR.
    """

    fusion_channels = 2048

    def __init__(
        self, checkpointing: bool = False, num_levels: int = 3, normalization: nn.Module | None = None
    ) -> None:
        super().__init__()
        if num_levels not in (3, 4):
            raise BundleError(f"`num_levels` must be 3 or 4, got {num_levels}.")
        self.channels = (256, 512, 1024, 4096)[-num_levels:]
        self.normalization = nn.Identity() if normalization is None else normalization
        self.checkpointing = checkpointing
        self.conv1a = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.b2 = _residual_stage(3, 64, 128, 128, stride=2)
        self.b3 = _residual_stage(3, 128, 256, 256, stride=2)
        self.b4 = _residual_stage(6, 256, 512, 512, stride=2)
        self.bn45 = nn.BatchNorm2d(512)
        self.b5 = _residual_stage(3, 512, 512, 1024, dilation=2)
        self.bn52 = nn.BatchNorm2d(1024)
        self.b6 = BottleneckBlock(1024, 2048, dilation=4, dropout=0.3)
        self.b7 = BottleneckBlock(2048, 4096, dilation=4, dropout=0.5)
        self.bn7 = nn.BatchNorm2d(4096)

    def levels(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map ``image``, (B, 3, H, W) in [0, 1], to the levels before the deepest, and b6's output."""
        early = self._run([*self.b2, *self.b3], self.conv1a(self.normalization(image)))  # (B, 256, H/4, W/4)
        x = self._run(self.b4, early)
        shallow = F.relu(self.bn45(x), inplace=True)  # (B, 512, H/8, W/8)
        x = self._run(self.b5, x)
        middle = F.relu(self.bn52(x), inplace=True)  # (B, 1024, H/8, W/8)
        x = self._run([self.b6], x)  # (B, 2048, H/8, W/8)
        return (early, shallow, middle, x)[-len(self.channels) :]

    def deepest(self, x: torch.Tensor) -> torch.Tensor:
        """Map b6's output, (B, 2048, h, w), possibly fused, to the feature f3, (B, 4096, h, w)."""
        return F.relu(self.bn7(self._run([self.b7], x)), inplace=True)

    def _run(self, blocks: Iterable[nn.Module], x: torch.Tensor) -> torch.Tensor:
        """Run ``x`` through the blocks in order."""
        for block in blocks:
            again = self.checkpointing and self.training and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return x
