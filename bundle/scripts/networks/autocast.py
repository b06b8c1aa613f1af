"""Run a network in half the bits, on any device; MONAI's engines do so on CUDA alone."""

import torch
from torch import nn


class Autocast(nn.Module):
    """Another network under ``torch.autocast``; its floating point outputs come back as float32.

    Losses therefore work in float32. The parameters stay as they are; wrap what an engine runs, not what is saved.

    Args:
        network: any network of tensors.
        dtype: ``"bfloat16"``, ``"float16"`` (for inference; training in it needs the engines' ``amp``), or
            ``"float32"``, which changes nothing.
    """

    def __init__(self, network: nn.Module, dtype: str) -> None:
        super().__init__()
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"`dtype` must be float32, bfloat16 or float16, got {dtype!r}.")
        self.network = network
        self.dtype = getattr(torch, dtype)

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Run the network on ``image``."""
        with torch.autocast(image.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            output = self.network(image)
        return tuple(part.float() for part in output) if isinstance(output, tuple) else output.float()
