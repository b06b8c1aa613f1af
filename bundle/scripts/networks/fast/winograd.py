"""Winograd convolutions for float32 inference on CPUs, where PyTorch has none that caches the transformed weights.

An output tile of m x m pixels of a k x k convolution takes n² products per pair of channels, n = m + k - 1, instead of
m² k²: with m = 4, 36 instead of 144 (k = 3) or 64 instead of 400 (k = 5). Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks" (CVPR 2016).
"""

import copy
import functools
import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

TILE = 4  # m, output pixels along a tile's side
POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)  # where the polynomials are evaluated, and at infinity
SMALLEST_CHANNELS = 256  # with fewer, the transforms cost more than they save
CHUNK_NUMBERS = 2**23  # transformed numbers per chunk: 32 MB


class WinogradConv2d(nn.Conv2d):
    """A convolution with the parameters of ``conv`` that uses Winograd's algorithm when no gradient is needed.

    Outputs differ from those of the direct convolution by about 1e-5 of the largest. On other devices, in other dtypes,
    under autocast and with gradients the direct convolution runs. The transformed weight, 4 (k = 3) or 2.6 (k = 5)
    times the size of the weight, is computed on first use and again after the weight changes.

    Args:
        conv: a convolution for which ``is_eligible`` is true; the parameters are shared.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        settings = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        super().__init__(*settings, bias=conv.bias is not None, device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)
        self._transformed: tuple[tuple[int, int], torch.Tensor] | None = None  # weight state, (n * n, in, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x``, (B, in, H, W), to (B, out, H, W)."""
        if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu") or not is_inference():
            return super().forward(x)
        dilation = self.dilation[0]
        per_image = self._winograd_numbers(x.shape[2:])
        parts = x.split(max(1, CHUNK_NUMBERS // per_image))
        output = torch.cat([_dilated(part, dilation, self._convolve) for part in parts])
        return output if self.bias is None else output + self.bias[:, None, None]

    def _winograd_numbers(self, size: torch.Size) -> int:
        """Count of transformed numbers for an image of ``size``."""
        tiles = math.prod(self.dilation[0] * math.ceil(side / self.dilation[0] / TILE) for side in size)
        return tiles * (TILE + self.kernel_size[0] - 1) ** 2 * self.in_channels

    def _transformed_weight(self, weight_transform: torch.Tensor) -> torch.Tensor:
        """The weight as (n * n, in, out)."""
        state = (self.weight.data_ptr(), self.weight._version)
        if self._transformed is None or self._transformed[0] != state:
            taps = self.weight.detach().flatten(2).permute(2, 1, 0)  # (k * k, in, out)
            product = (weight_transform @ taps.flatten(1)).view(-1, *taps.shape[1:])
            self._transformed = state, product
        return self._transformed[1]

    def _convolve(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x``, (B, H, W, in), to (B, H, W, out) by the undilated convolution, without bias."""
        batch, height, width, channels = x.shape
        kernel = self.kernel_size[0]
        side, margin = TILE + kernel - 1, kernel // 2
        input_transform, weight_transform, output_transform = _transforms(kernel)
        weight = self._transformed_weight(weight_transform)
        rows, columns = math.ceil(height / TILE), math.ceil(width / TILE)
        right, bottom = columns * TILE - width + margin, rows * TILE - height + margin
        x = F.pad(x, (0, 0, margin, right, margin, bottom))
        tiles = x.unfold(1, side, TILE).unfold(2, side, TILE)  # (B, rows, columns, in, n, n)
        tiles = tiles.permute(4, 5, 0, 1, 2, 3).reshape(side * side, -1)
        tiles = (input_transform @ tiles).view(side * side, -1, channels)  # (n * n, B * rows * columns, in)
        products = torch.bmm(tiles, weight)  # (n * n, B * rows * columns, out)
        output = (output_transform @ products.flatten(1)).view(TILE, TILE, batch, rows, columns, -1)
        output = output.permute(2, 3, 0, 4, 1, 5).reshape(batch, rows * TILE, columns * TILE, -1)
        return output[:, :height, :width]


def is_inference() -> bool:
    """Whether only values are needed: no gradient, no export."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing())


def is_eligible(conv: nn.Module) -> bool:
    """Whether ``WinogradConv2d`` supports ``conv``, and it has enough channels to pay off."""
    if type(conv) is not nn.Conv2d or conv.kernel_size not in ((3, 3), (5, 5)):
        return False
    same_size = tuple(d * (k // 2) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    plain = conv.stride == (1, 1) and conv.groups == 1 and conv.padding == same_size and conv.padding_mode == "zeros"
    isotropic = conv.dilation[0] == conv.dilation[1]
    return plain and isotropic and min(conv.in_channels, conv.out_channels) >= SMALLEST_CHANNELS


def with_winograd(network: nn.Module) -> nn.Module:
    """Copy ``network``, sharing its parameters, with eligible convolutions replaced by ``WinogradConv2d``."""
    shared = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
    fast = copy.deepcopy(network, shared)
    for parent in list(fast.modules()):
        for name, child in parent.named_children():
            if is_eligible(child):
                setattr(parent, name, WinogradConv2d(child))
    return fast


def _dilated(x: torch.Tensor, dilation: int, convolve: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Apply ``convolve`` to each of the ``dilation``² interleaved grids of ``x``, (B, C, H, W)."""
    height, width = x.shape[2:]
    x = F.pad(x, (0, -width % dilation, 0, -height % dilation)).permute(0, 2, 3, 1)  # (B, H, W, C)
    x = x.unflatten(2, (-1, dilation)).unflatten(1, (-1, dilation)).permute(0, 2, 4, 1, 3, 5)
    grids = convolve(x.flatten(0, 2))  # (B * d * d, H / d, W / d, out)
    grids = grids.unflatten(0, (-1, dilation, dilation)).permute(0, 3, 1, 4, 2, 5)
    output = grids.flatten(3, 4).flatten(1, 2)[:, :height, :width]  # (B, H, W, out)
    return output.permute(0, 3, 1, 2)


@functools.cache
def _transforms(kernel: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Matrices that transform an input tile, the weight and the products, along both axes at once.

    Returns:
        (n², n²), (n², k²) and (m², n²), float32.
    """
    side = TILE + kernel - 1
    points = POINTS[: side - 1]
    output, weight = (torch.zeros(side, length, dtype=torch.float64) for length in (TILE, kernel))
    for row, point in enumerate(points):
        output[row] = torch.tensor([point**power for power in range(TILE)])
        scale = math.prod(point - other for other in points if other != point)
        weight[row] = torch.tensor([point**power / scale for power in range(kernel)])
    output[-1, -1] = weight[-1, -1] = 1  # infinity
    # the input transform solves sum_i output[i, p] (weight @ w)[i] (input @ x)[i] = sum_q x[p + q] w[q]
    system = torch.einsum("ip,iq->pqi", output, weight).flatten(0, 1)  # (m * k, n)
    place = torch.arange(TILE)[:, None, None] + torch.arange(kernel)[:, None]
    wanted = (place == torch.arange(side)).flatten(0, 1).double()  # (m * k, n)
    tile = torch.linalg.lstsq(system, wanted).solution  # (n, n)
    return tuple(torch.kron(m.contiguous(), m.contiguous()).float() for m in (tile, weight, output.T))
