"""Run a network in half precision on any device; MONAI's engines do so on CUDA only."""

import logging

import torch
from torch import nn

from ..errors import BundleError

logger = logging.getLogger(__name__)


class Autocast(nn.Module):
    """Run a network under ``torch.autocast`` and return its outputs as float32.

    Losses are therefore computed in float32. The parameters keep their dtype. Wrap the network that an engine runs, not
    the one that is saved.

    Args:
        network: any network that maps tensors to tensors.
        dtype: ``"bfloat16"``, ``"float16"`` (inference only; training in it needs the engines' ``amp``), or
            ``"float32"``, which disables autocast.
        compile: run the network through ``torch.compile``, which needs a C++ compiler on CPUs.
    """

    def __init__(self, network: nn.Module, dtype: str, compile: bool = False) -> None:
        super().__init__()
        if dtype not in ("float32", "bfloat16", "float16"):
            raise BundleError(f"`dtype` must be float32, bfloat16 or float16, got {dtype!r}.")
        if dtype == "bfloat16" and not torch.cuda.is_available() and not has_bfloat16():
            logger.warning("This CPU has no bfloat16 instructions: bfloat16 is emulated and slower than float32.")
        self.network = torch.compile(network) if compile else network
        self.dtype = getattr(torch, dtype)

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Run the network on ``image``."""
        with torch.autocast(image.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            output = self.network(image)
        return tuple(part.float() for part in output) if isinstance(output, tuple) else output.float()


def has_bfloat16() -> bool:
    """Whether this CPU has bfloat16 instructions; others emulate it, many times slower."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return True  # older PyTorch versions cannot tell
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16"))
