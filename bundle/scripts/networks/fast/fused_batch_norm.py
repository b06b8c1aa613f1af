"""Fuse batch norms into the preceding convolutions for inference: same values, fewer passes over memory."""

import copy
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...errors import BundleError


@torch.no_grad()
def fuse_batch_norms(network: nn.Module, image_size: Sequence[int], part: str = "") -> nn.Module:
    """Copy a network for inference only, with batch norms fused into the preceding convolutions.

    Layers that are not fused share the network's parameters. A forward pass with a random image finds the batch norms
    whose input is a convolution's unmodified output.

    Args:
        network: maps images (B, 3, H, W) in [0, 1] to a tensor, or a tuple of them, in evaluation mode.
        image_size: height and width in pixels of a valid input image.
        part: name of the only part to fuse, which maps images likewise; by default the whole network.

    Raises:
        BundleError: if the copy's output differs, because a convolution's output is also used elsewhere.
    """
    shared = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
    fast = copy.deepcopy(network, shared).eval()
    if part:
        fast.set_submodule(part, fuse_batch_norms(network.get_submodule(part), image_size))
        return fast
    convolutions, pairs = [], []

    def note(convolution: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        convolutions.append((convolution, output, output._version))

    def pair(norm: nn.Module, inputs: tuple) -> None:
        for convolution, output, version in convolutions:
            if output is inputs[0] and output._version == version:  # nothing was added to it in place
                pairs.append((convolution, norm))

    hooks = [m.register_forward_hook(note) for m in fast.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(pair) for m in fast.modules() if isinstance(m, _BatchNorm)]
    image = torch.rand(1, 3, *image_size, generator=torch.Generator().manual_seed(0))
    image = image.to(next(network.parameters()).device)
    expected = _flat(fast(image))
    for hook in hooks:
        hook.remove()
    names = {module: name for name, module in fast.named_modules()}
    uses = Counter(module for two in pairs for module in two)
    for convolution, norm in pairs:
        if uses[convolution] > 1 or uses[norm] > 1:
            continue
        fast.set_submodule(names[convolution], fuse_conv_bn_eval(convolution, norm))
        rest = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]  # timm's norms have these
        fast.set_submodule(names[norm], nn.Sequential(*rest))
    worst, largest = (_flat(fast(image)) - expected).abs().max(), expected.abs().max()
    if not worst <= (1e-3 if image.device.type == "cpu" else 2e-2) * largest:  # a GPU's TF32 keeps ten bits
        raise BundleError(
            f"the batch norms of `network` must be fusible, got outputs that differ by {worst:.3g} of {largest:.3g}; "
            "use the network without fusing."
        )
    return fast


def _flat(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Flatten and concatenate all tensors of an output."""
    return torch.cat([part.flatten() for part in (output if isinstance(output, tuple) else (output,))])
