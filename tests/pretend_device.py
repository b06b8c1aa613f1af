"""A pretend accelerator for tests: tensors on ``pretend:0`` compute on the CPU and refuse what a GPU's tensors refuse.

    python ../tests/pretend_device.py run training --config_file "[...]" --device '$torch.device("pretend:0")'

in the folder ``bundle`` is ``python -m monai.bundle run training ...`` with that device. ``install()`` changes the
process for good, so tests do it in processes of their own.

What it shows: tensors of two devices in one operation, but for CPU scalars where a GPU takes them; NumPy arrays of a
device's tensors; results read before a copy with ``non_blocking=True`` is there; places at which the host waits for the
device (``waits``); autocast's types.

What it cannot show: speed, memory, CUDA's own numerics, kernels that CUDA lacks or that are not deterministic there,
pinned memory, CUDA graphs, more than one stream or device, NCCL, MONAI's ``amp`` (of CUDA alone). Random numbers come
from the CPU's generator, so that a run draws the numbers of a run on the CPU. ``Module.to`` makes new parameters, where
CUDA keeps the old ones. Operations that torch composes of others may be composed as for the CPU. Tensors cannot change
their size in place. An operation of the CPU that is given a generator of the device is not refused.
"""

import functools
import os
import runpy
import sys
from typing import Any

import torch
from pretend_backend import NAME, Backend, autocast_kernels, generator_class, waits
from pretend_tensor import MADE_WHOLE, OnDevice, dispatch, is_device
from torch.optim import optimizer
from torch.utils import _foreach_utils, backend_registration

__all__ = ["NAME", "install", "waits", "why_unavailable"]


def why_unavailable() -> str | None:
    """What this torch lacks to have such a device; ``None`` if nothing."""
    needed = {
        "torch.utils.backend_registration._setup_privateuseone_for_python_backend": backend_registration,
        "torch._C._ExcludeDispatchKeyGuard": torch._C,
        "torch.Tensor._make_wrapper_subclass": torch.Tensor,
        "torch._utils._rebuild_device_tensor_from_cpu_tensor": torch._utils,
    }
    missing = [name for name, owner in needed.items() if not hasattr(owner, name.rpartition(".")[2])]
    return f"torch {torch.__version__} has no {', '.join(missing)}" if missing else None


_registered: list[Any] = []  # kernels go with their libraries


def install() -> None:
    """Register the device with torch, in this process for good."""
    if _registered:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    kernels = torch.library.Library("_", "IMPL", "PrivateUse1")
    kernels.fallback(lambda func, *args, **kwargs: dispatch(func, args, kwargs))
    whole = torch.library.Library("aten", "IMPL", "PrivateUse1")
    for name in MADE_WHOLE:
        func = functools.reduce(getattr, name.split("."), torch.ops.aten)
        whole.impl(func, functools.partial(_made, func))
    _registered.extend([kernels, whole, *autocast_kernels()])
    torch.Generator = generator_class
    torch.tensor = _made_on_the_cpu(torch.tensor)
    torch.as_tensor = _made_on_the_cpu(torch.as_tensor)
    for module in (optimizer, _foreach_utils):  # as on GPUs, optimisers work on lists of tensors
        module._foreach_supported_types.append(OnDevice)


def _made(func: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> torch.Tensor:
    return dispatch(func, args, kwargs)


def _made_on_the_cpu(make: Any) -> Any:
    @functools.wraps(make)
    def made(data, *args, device=None, **kwargs):
        if not is_device(device):
            return make(data, *args, device=device, **kwargs)
        requires_grad = kwargs.pop("requires_grad", False)
        tensor = make(data, *args, **kwargs).to(device)
        return tensor.requires_grad_() if requires_grad else tensor

    return made


if __name__ == "__main__":
    sys.modules["pretend_device"] = sys.modules["__main__"]  # one device, for whoever imports it too
    install()
    sys.path[0] = os.getcwd()  # as with python -m
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
