"""A pretend accelerator for tests: tensors on ``pretend:0`` compute on the CPU and refuse what a GPU's tensors refuse.

    python ../tests/pretend_device.py run training --config_file "[...]" --device '$torch.device("pretend:0")'

in the folder ``bundle`` is ``python -m monai.bundle run training ...`` with that device. ``install()`` changes the
process for good, so tests do it in processes of their own.

What it shows: tensors of two devices in one operation, but for CPU scalars where a GPU takes them; NumPy arrays of a
device's tensors; results read before a copy with ``non_blocking=True`` is there; places at which the host waits for the
device (``waits``); autocast's types.

What it cannot show: speed, memory, CUDA's own numerics, kernels that CUDA lacks or that are not deterministic there,
pinned memory, more than one stream or device, NCCL. Random numbers come from the CPU's generator, so that a run draws
the numbers of a run on the CPU. ``Module.to`` makes new parameters, where CUDA keeps the old ones. Operations that
torch composes of others may be composed as for the CPU. Tensors cannot change their size in place.
"""

import contextlib
import functools
import importlib
import numbers
import os
import runpy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pretend_backend import NAME, Backend, DeviceGenerator, autocast_kernels, generator_class, queue
from torch.utils import backend_registration

DEVICE_TYPES = (NAME, "privateuseone")
ALWAYS_WAIT = {  # the size of the result, or the result itself, is needed on the CPU
    *(
        "_local_scalar_dense",
        "allclose",
        "equal",
        "is_nonzero",
        "nonzero",
        "nonzero_static",
        "masked_select",
        "bincount",
        "_linalg_check_errors",
    ),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
}
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"}
MADE_WHOLE = (  # torch composes these of an empty tensor and a change of its size
    *("arange.default", "arange.start", "arange.start_step", "linspace.default", "logspace.default", "range.default"),
    *("range.step", "eye.default", "eye.m", "randperm.default", "randperm.generator", "tril_indices.default"),
    "triu_indices.default",
)
TAKES_CPU_SCALARS = {"fill_", "fill", "masked_fill", "masked_fill_", "index_fill", "index_fill_"}
OWN_FILES = ("pretend_device.py", "pretend_backend.py")
LIBRARIES = tuple(os.path.dirname(module.__file__) + os.sep for module in (torch, contextlib, functools))


@dataclass(frozen=True)
class Wait:
    """A place at which a CUDA program's host would wait for its device.

    Args:
        operation: name of the operation.
        place: file and line of the innermost frame in the bundle's ``scripts``, and of the one outside torch that it
            called, if any.
    """

    operation: str
    place: str


_recorders: list[list[Wait]] = []


@contextlib.contextmanager
def waits() -> Iterator[list[Wait]]:
    """Collect the waits of this process, all threads included, while the context lasts."""
    found: list[Wait] = []
    _recorders.append(found)
    try:
        yield found
    finally:
        _recorders[:] = [recorder for recorder in _recorders if recorder is not found]


def note_wait(operation: str) -> None:
    """The host waits: what the device was asked to do is done now."""
    queue.finish()
    if _recorders:
        wait = Wait(operation, _place())
        for recorder in _recorders:
            recorder.append(wait)


def _place() -> str:
    frame, outside = sys._getframe(2), None
    while frame is not None:
        path, line = frame.f_code.co_filename, frame.f_lineno
        _, found, inside = path.rpartition(f"{os.sep}scripts{os.sep}")
        if found:
            return f"scripts/{inside}:{line}" + (f" ({outside})" if outside else "")
        if outside is None and not path.startswith(LIBRARIES) and os.path.basename(path) not in OWN_FILES:
            outside = f"{os.sep.join(path.split(os.sep)[-3:])}:{line}"
        frame = frame.f_back
    return outside or "backward"


class OnDevice(torch.Tensor):
    """A tensor that says it is on ``pretend:0``; ``inner`` has its values, on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "OnDevice":
        if inner.is_inference() != torch.is_inference_mode_enabled():  # a view of an older tensor
            with torch.inference_mode(inner.is_inference()):
                return cls._around(inner)
        return cls._around(inner)

    def __init__(self, inner: torch.Tensor) -> None:
        pass

    @classmethod
    def _around(cls, inner: torch.Tensor) -> "OnDevice":
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
        )
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})

    def __getitem__(self, index):
        entries = index if isinstance(index, tuple) else (index,)
        entries = tuple(_on_device(entry) if isinstance(entry, list) else entry for entry in entries)
        return super().__getitem__(entries if isinstance(index, tuple) else entries[0])

    def __setitem__(self, index, value):
        entries = index if isinstance(index, tuple) else (index,)
        entries = tuple(_on_device(entry) if isinstance(entry, list) else entry for entry in entries)
        if isinstance(value, numbers.Number):
            value = torch.tensor(value, dtype=self.dtype)  # as for CUDA: a scalar of the CPU
        super().__setitem__(entries if isinstance(index, tuple) else entries[0], value)

    @property
    def data(self) -> torch.Tensor:
        """The values without history."""
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        if not isinstance(value, OnDevice) or _layout(value) != _layout(self):
            raise RuntimeError(
                "the data of a tensor on the pretend device can only be set to another such, of its shape."
            )
        self.inner = value.inner

    def new_tensor(self, data, *, dtype=None, device=None, requires_grad=False):
        """As ``torch.Tensor.new_tensor``."""
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or DEVICE, requires_grad=requires_grad)

    def tolist(self):
        """The values as Python's numbers."""
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False):
        """The values as an array if ``force``; refused otherwise."""
        if force:
            return self.detach().cpu().resolve_conj().resolve_neg().numpy()
        raise TypeError(
            f"can't convert {NAME}:0 device type tensor to numpy. "
            "Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def __array__(self, *args, **kwargs):
        return self.numpy()

    def __reduce_ex__(self, protocol):  # as torch does for devices without storages of their own
        values = self.detach().cpu()
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, (
            values,
            self.dtype,
            str(DEVICE),
            self.requires_grad,
        )

    def __deepcopy__(self, memo):
        if id(self) in memo:
            return memo[id(self)]
        if not self.is_leaf:
            raise RuntimeError(
                "Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol"
            )
        copy = self.detach().clone().requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copy._is_param = True
        memo[id(self)] = copy
        return copy

    def __repr__(self, **kwargs):
        return f"OnDevice({self.inner!r})"


def _layout(tensor: torch.Tensor) -> tuple:
    return tensor.size(), tensor.stride(), tensor.dtype, tensor.storage_offset()


def _on_device(data: Any) -> torch.Tensor:
    return torch.tensor(data, device=DEVICE)


def is_device(device: Any) -> bool:
    """Whether ``device`` names the pretend device."""
    if device is None:
        return False
    return (device if type(device) is torch.device else torch.device(device)).type in DEVICE_TYPES


class Operation:
    """How one overload of an operator of torch is carried out.

    Args:
        func: the overload.
    """

    def __init__(self, func: torch._ops.OpOverload) -> None:
        self.func = func
        self.name = func._schema.name.removeprefix("aten::")
        arguments, returns = func._schema.arguments, func._schema.returns
        written = {
            name: (position, argument.name, argument.kwarg_only)
            for position, argument in enumerate(arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
            for name in argument.alias_info.before_set
        }
        self.written = [(position, name) for position, name, _ in written.values()]
        kept = [next(iter(value.alias_info.before_set), None) if value.alias_info else None for value in returns]
        self.returned = [written[name][:2] if name in written else None for name in kept]
        self.several = len(returns) > 1
        self.takes_cpu_scalars = (
            torch.Tag.pointwise in func.tags
            or self.name in TAKES_CPU_SCALARS
            or self.name.startswith(("_foreach_", "_fused_"))
        )
        self.waits = self.name in ALWAYS_WAIT
        self.special = {"_to_copy": move, "copy_": copy_into, "repeat_interleave": repeat_interleave}.get(self.name)
        self.special = index if self.name in INDEXING else self.special
        if self.name == "_has_compatible_shallow_copy_type":  # Module.to asks it of the old tensor and the new one
            self.special = lambda operation, args, kwargs: all(type(tensor) is OnDevice for tensor in args)

    def __call__(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Compute on the CPU what the device would, after the device's checks."""
        if self.special is not None:
            return self.special(self, args, kwargs)
        return self.compute(args, kwargs)

    def compute(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Check, compute and give the result to where it belongs."""
        found = [False, None, None]  # whether a tensor is on the device; one of the CPU, and a CPU scalar
        plain_args = [_plain(value, found) for value in args]
        plain_kwargs = {name: _plain(value, found) for name, value in kwargs.items()} if kwargs else kwargs
        mine, stranger, scalar = found
        if mine and (stranger is not None or scalar is not None and not self.takes_cpu_scalars):
            raise self.refusal()
        device = kwargs.get("device") if kwargs else None
        wanted = mine if device is None else is_device(device)
        if kwargs:
            if wanted and device is not None:
                plain_kwargs["device"] = CPU
                plain_kwargs.pop("pin_memory", None)
            if kwargs.get("generator") is not None and DeviceGenerator.knows(kwargs["generator"]) != wanted:
                raise RuntimeError(f"Expected a generator of the tensors' device for {self.name}.")
        written = [args[at] if at < len(args) else kwargs.get(name) for at, name in self.written]
        if mine and any(isinstance(tensor, torch.Tensor) and type(tensor) is not OnDevice for tensor in written):
            raise self.refusal()
        if self.waits and mine:
            note_wait(self.name)
        result = self.func(*plain_args, **plain_kwargs)
        for tensor in written:
            if type(tensor) is OnDevice and tensor.inner.size() != tensor.size():
                raise NotImplementedError(
                    f"the pretend device has no {self.name} that changes a tensor's size in place."
                )
        return self.place(result, args, kwargs) if wanted and self.name != "_local_scalar_dense" else result

    def place(self, result: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Give the result's tensors to the device; what was written in place is itself."""
        if not self.several:
            if self.returned and (own := self.returned[0]) is not None:
                return args[own[0]] if own[0] < len(args) else kwargs[own[1]]
            return _wrapped(result)
        return tuple(
            _wrapped(part) if own is None else args[own[0]] if own[0] < len(args) else kwargs[own[1]]
            for part, own in zip(result, self.returned, strict=True)
        )

    def refusal(self) -> RuntimeError:
        """The error that CUDA's tensors give."""
        return RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{NAME}:0 and cpu! (when calling {self.name})"
        )


def _plain(value: Any, found: list) -> Any:
    kind = type(value)
    if kind is OnDevice:
        found[0] = True
        return value.inner
    if kind is list or kind is tuple:
        return [_plain(part, found) for part in value]
    if isinstance(value, torch.Tensor):
        found[1 if value.dim() else 2] = value
    return value


def _wrapped(result: Any) -> Any:
    if type(result) is torch.Tensor:
        return OnDevice(result)
    if type(result) in (list, tuple):
        return type(result)(_wrapped(part) for part in result)
    return result


def move(operation: Operation, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    """``Tensor.to``: the values on another device, or with another type."""
    (tensor,) = args
    device, settings = kwargs.get("device"), dict(kwargs)
    source, target = type(tensor) is OnDevice, is_device(device) if device is not None else type(tensor) is OnDevice
    if source == target:
        return operation.compute(args, kwargs) if source else operation.func(*args, **kwargs)
    settings["device"] = CPU
    if not kwargs.get("non_blocking"):
        note_wait("copy to the device" if target else "copy to the CPU")
    values = operation.func(tensor.inner if source else tensor, **settings)
    if target:
        return OnDevice(values)
    return queue.later(values) if kwargs.get("non_blocking") else values


def copy_into(operation: Operation, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    """``Tensor.copy_``, between devices too."""
    target, source, non_blocking = (*args, kwargs.get("non_blocking", False))[:3]
    ends = type(source) is OnDevice, type(target) is OnDevice
    if ends[0] != ends[1] and not non_blocking:
        note_wait("copy to the device" if ends[1] else "copy to the CPU")
    values = source.inner if ends[0] else source
    if ends == (True, False) and non_blocking:
        queue.later(target, values.expand_as(target).to(target.dtype, copy=True))
    else:
        operation.func(target.inner if ends[1] else target, values)
    return target


def index(operation: Operation, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    """Indexing and assignment: indices of the CPU are copied to the device, and masks are counted."""
    indices = [entry for entry in args[1] if entry is not None]
    if type(args[0]) is not OnDevice:
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    masks = [entry for entry in indices if entry.dtype in (torch.bool, torch.uint8)]
    value = args[2] if len(args) > 2 else None
    if value is not None and type(value) is not OnDevice and value.dim() > 0:
        raise operation.refusal()
    filled = value is not None and type(value) is not OnDevice and len(indices) == len(masks) == 1  # as masked_fill_
    if any(type(entry) is not OnDevice for entry in indices):
        note_wait(f"{operation.name} with indices of the CPU")
    if masks and not filled:
        note_wait(f"{operation.name} with a mask")
    plain = [_plain(value, [False, None, None]) for value in args]
    result = operation.func(*plain, **kwargs)
    return operation.place(result, args, kwargs)


def repeat_interleave(operation: Operation, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    """Waits unless the size of the result is given."""
    if kwargs.get("output_size") is None:
        note_wait(operation.name)
    return operation.compute(args, kwargs)


@functools.cache
def _operation(func: torch._ops.OpOverload) -> Operation:
    return Operation(func)


def dispatch(func: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Carry out an operator with tensors of the device or for it."""
    return _operation(func)(args, kwargs)


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
    global DEVICE
    if _registered:
        return
    Backend.on_wait = staticmethod(note_wait)
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    DEVICE = torch.device(NAME, 0)
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
    for module in (
        "torch.optim.optimizer",
        "torch.utils._foreach_utils",
    ):  # on GPUs optimisers work on lists of tensors
        importlib.import_module(module)._foreach_supported_types.append(OnDevice)


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


CPU = torch.device("cpu")
DEVICE: torch.device

if __name__ == "__main__":
    sys.modules["pretend_device"] = sys.modules["__main__"]  # one device, for whoever imports it too
    install()
    sys.path[0] = os.getcwd()  # as with python -m
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
