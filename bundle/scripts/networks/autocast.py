"""Run a network in half the bits, on any device; MONAI's engines do so on CUDA alone."""

import logging

import torch
from torch import nn

from ..errors import BundleError

logger = logging.getLogger(__name__)


class Autocast(nn.Module):
    """Another network under ``torch.autocast``; its floating point outputs come back as float32.

    Losses therefore work in float32. The parameters stay as they are; wrap what an engine runs, not what is saved.

    Args:
        network: any network of tensors.
        dtype: ``"bfloat16"``, ``"float16"`` (for inference; training in it needs the engines' ``amp``), or
            ``"float32"``, which changes nothing.
        compile: run the network through ``torch.compile``, which needs a C++ compiler on CPUs.
    """

    def __init__(self, network: nn.Module, dtype: str, compile: bool = False) -> None:
        super().__init__()
        if dtype not in ("float32", "bfloat16", "float16"):
            raise BundleError(f"`dtype` must be float32, bfloat16 or float16, got {dtype!r}.")
        if dtype == "bfloat16" and not torch.cuda.is_available() and not has_bfloat16():
            logger.warning("This CPU has no instructions for bfloat16: it is emulated, and slower than float32.")
        self.network = torch.compile(network) if compile else network
        self.dtype = getattr(torch, dtype)

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Run the network on ``image``."""
        with torch.autocast(image.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            output = self.network(image)
        return tuple(part.float() for part in output) if isinstance(output, tuple) else output.float()


def has_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16; others emulate it, many times slower."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return True  # an older PyTorch does not tell
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16"))
