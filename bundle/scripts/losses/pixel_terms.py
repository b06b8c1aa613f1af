"""Terms shared by the losses on noisy pseudo masks: one-hot targets, uncertainty and spatial smoothness."""

import torch

from ..errors import BundleError
from ..files.pictures import IGNORED

EPSILON = 1e-6


def one_hot(target: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """One-hot channels of ``target``, (B, H, W) or (B, 1, H, W) integers, for ``logits``, (B, K, H, W).

    Returns:
        (B, K, H, W) of 0 and 1 in the dtype of ``logits``; all 0 where ``target`` is outside 0..K-1, i.e. background.

    Raises:
        BundleError: if their batch or image sizes differ.
    """
    batch, num_classes, height, width = logits.shape
    if target.shape not in ((batch, height, width), (batch, 1, height, width)):
        raise BundleError(
            f"`target` must be (B, H, W) or (B, 1, H, W) to match `logits` {tuple(logits.shape)}, got "
            f"{tuple(target.shape)}."
        )
    channels = torch.arange(num_classes, device=logits.device).view(1, -1, 1, 1)
    return (target.reshape(batch, 1, height, width) == channels).to(logits.dtype)


def counted(target: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """(B, 1, H, W) in the dtype of ``logits``, (B, K, H, W): 0 where ``target`` is ``IGNORED``, 1 elsewhere."""
    return (target.reshape(len(logits), 1, *logits.shape[2:]) != IGNORED).to(logits.dtype)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of ``values``, (B, C, H, W), over channels and positions where ``mask``, (B, 1, H, W), is 1; 0 if none."""
    return (values * mask).sum() / (values.shape[1] * mask.sum()).clamp(min=1)


def uncertainty(confidence: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of ``-(1 - confidence) log(1 - confidence)`` over ``mask``; both are (B, 1, H, W). Returns a scalar."""
    doubt = 1 - confidence
    return masked_mean(-doubt * torch.log(doubt + EPSILON), mask)


def roughness(prob: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of ``prob``, (B, C, H, W), between vertical neighbours plus that of horizontal ones.

    Only pairs with both pixels in ``mask``, (B, 1, H, W), count; without any it is 0. Returns a scalar.
    """
    vertical, horizontal = (prob.diff(dim=axis).abs().mean(dim=1, keepdim=True) for axis in (2, 3))
    vertical = masked_mean(vertical, mask[:, :, 1:] * mask[:, :, :-1])
    return vertical + masked_mean(horizontal, mask[..., 1:] * mask[..., :-1])
