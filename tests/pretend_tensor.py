"""Tensors of the pretend device, and how they are computed with: on the CPU, after the checks that a GPU makes."""

import functools
import numbers
from typing import Any

import torch
from pretend_backend import NAME, DeviceGenerator, note_wait, queue

CPU = torch.device("cpu")
DEVICE_TYPES = (NAME, "privateuseone")
# the host needs the result of these, or its size
ALWAYS_WAIT = """_linalg_check_errors _local_scalar_dense _unique _unique2 allclose bincount equal is_nonzero
masked_select nonzero unique_consecutive unique_dim unique_dim_consecutive""".split()
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"}
MADE_WHOLE = (  # torch composes these of an empty tensor and a change of its size
    *("arange.default", "arange.start", "arange.start_step", "linspace.default", "logspace.default", "range.default"),
    *("range.step", "eye.default", "eye.m", "randperm.default", "randperm.generator", "tril_indices.default"),
    "triu_indices.default",
)
TAKES_CPU_SCALARS = {"fill_", "fill", "masked_fill", "masked_fill_", "index_fill", "index_fill_"}


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
            device=_device(),
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
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or _device(), requires_grad=requires_grad)

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
            f"{NAME}:0",
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
    return torch.tensor(data, device=_device())


@functools.cache
def _device() -> torch.device:
    return torch.device(NAME, 0)  # once it is registered


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
