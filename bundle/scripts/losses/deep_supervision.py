"""The weighted sum of a loss over the outputs of a network with several outputs."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..errors import BundleError


class DeepSupervisionLoss(nn.Module):
    """``sum over i of weights[i] * loss(outputs[i], target)``, in float32.

    ``monai.losses.DeepSupervisionLoss`` starts its sum with a number copied to the device, which synchronises with the
    GPU in every step and prevents capturing a step as a CUDA graph.

    Args:
        loss: takes an output and the target.
        weights: one weight per output.
    """

    def __init__(self, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], weights: Sequence[float]) -> None:
        super().__init__()
        self.loss = loss
        self.weights = list(weights)

    def forward(self, outputs: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """Sum the weighted losses of ``outputs``, tensors of any shape, and ``target``; a single tensor has no weight.

        Returns:
            The loss, a float32 scalar.

        Raises:
            BundleError: if the numbers of outputs and weights differ.
        """
        if isinstance(outputs, torch.Tensor):
            return self.loss(outputs.float(), target)
        if len(outputs) != len(self.weights):
            raise BundleError(
                f"`outputs` must have one tensor per weight, {len(self.weights)}, got {len(outputs)}; set `weights` to "
                "one number per output."
            )
        losses = (self.loss(output.float(), target) for output in outputs)
        return sum(weight * loss for weight, loss in zip(self.weights, losses, strict=True))
