"""Layers for exporters: the same arithmetic as the layers they replace, for dynamic image sizes.

``torch.export`` and ONNX Runtime cannot handle padding computed from the image's size, or adaptive pooling to more than
one bin. For images whose sides are multiples of the network's stride, both can be expressed differently.
"""

from copy import deepcopy

import torch
from timm.layers import Conv2dSame
from torch import nn

from ..networks import PadAndCrop


class AveragingMatrixPool(nn.Module):
    """``AdaptiveAvgPool2d`` as two matrix products, which work for any size.

    Args:
        bins: rows and columns of the output.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def _shares(self, size: int, like: torch.Tensor) -> torch.Tensor:
        """The weight of each of ``size`` pixels in each bin, (bins, size); bins may overlap by a pixel."""
        bins = torch.arange(self.bins, device=like.device)[:, None]
        pixel = torch.arange(size, device=like.device)[None]
        first, end = bins * size // self.bins, -(-(bins + 1) * size // self.bins)
        inside = ((pixel >= first) & (pixel < end)).to(like.dtype)
        return inside / inside.sum(dim=1, keepdim=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Average ``x``, (B, C, H, W), into (B, C, bins, bins)."""
        return self._shares(x.shape[2], x) @ x @ self._shares(x.shape[3], x).T


def with_constant_padding(conv: Conv2dSame) -> nn.Module:
    """A convolution with TensorFlow's "same" padding, for sides that are multiples of its stride."""
    pads = []
    for kernel, dilation, stride in zip(conv.kernel_size[::-1], conv.dilation[::-1], conv.stride[::-1], strict=True):
        pad = max((kernel - 1) * dilation + 1 - stride, 0)
        pads += [pad // 2, pad - pad // 2]
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    plain.load_state_dict(conv.state_dict())
    return nn.Sequential(nn.ZeroPad2d(pads), plain)


def for_multiples_of_stride(network: nn.Module) -> nn.Module:
    """A copy of ``network`` for exporters, for images whose sides are multiples of its stride."""
    return _replaced(deepcopy(network))


def _replaced(module: nn.Module) -> nn.Module:
    """``module`` itself with its children replaced, or its replacement."""
    if isinstance(module, Conv2dSame):
        return with_constant_padding(module)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        bins = module.output_size if isinstance(module.output_size, tuple) else (module.output_size,) * 2
        return AveragingMatrixPool(bins[0]) if bins[0] == bins[1] and bins[0] > 1 else module
    for name, child in module.named_children():
        setattr(module, name, _replaced(child))
    return nn.Sequential(module.normalization, module.network) if isinstance(module, PadAndCrop) else module
