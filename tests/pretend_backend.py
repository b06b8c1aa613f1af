"""What torch asks of the pretend device's module: waits, events, streams, random numbers and autocast."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

NAME = "pretend"
OWN_FILES = ("pretend_device.py", "pretend_tensor.py", "pretend_backend.py")
LIBRARIES = tuple(os.path.dirname(module.__file__) + os.sep for module in (torch, contextlib, functools))
HALF = """addbmm addmm addmv addr baddbmm bmm chain_matmul conv1d conv2d conv3d conv_tbc conv_transpose1d
conv_transpose2d conv_transpose3d _convolution convolution einsum linalg_multi_dot linear matmul mm mv prelu
scaled_dot_product_attention""".split()
SINGLE = """acos asin binary_cross_entropy_with_logits cdist cosh cosine_embedding_loss cosine_similarity cumprod cumsum
dist erfinv exp expm1 group_norm hinge_embedding_loss huber_loss kl_div l1_loss layer_norm linalg_vector_norm log log10
log1p log2 log_softmax logsumexp margin_ranking_loss mse_loss multi_margin_loss multilabel_margin_loss nll_loss
nll_loss2d norm poisson_nll_loss pow prod reciprocal renorm rsqrt sinh smooth_l1_loss soft_margin_loss softmax softplus
sum tan triplet_margin_loss""".split()  # as CUDA's autocast has it


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


def note_wait(operation: str, mark: int | None = None) -> None:
    """The host waits: what the device was asked to do, up to a mark, is done now."""
    queue.finish(mark)
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


class Queue:
    """What the host asked the device to do and did not wait for: copies to the CPU, and the marks of events."""

    def __init__(self) -> None:
        self.count = 0  # of what was asked for
        self.reached = 0  # of what is done
        self._copies: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def mark(self) -> int:
        """A place in the queue, reached when all that was asked for before is done."""
        self.count += 1
        return self.count

    def later(self, target: torch.Tensor, values: torch.Tensor | None = None) -> torch.Tensor:
        """Spoil ``target``, and give it ``values`` (by default those that it has) when the copy is waited for."""
        values = target.clone() if values is None else values
        with torch.no_grad():
            if target.dtype == torch.bool:
                target.copy_(values.logical_not())
            else:
                target.fill_(torch.nan if target.is_floating_point() else torch.iinfo(target.dtype).max)
        self._copies.append((self.mark(), target, values))
        return target

    def finish(self, mark: int | None = None) -> None:
        """Do what was asked for, all of it or up to ``mark``."""
        self.reached = max(self.reached, self.count if mark is None else mark)
        while self._copies and self._copies[0][0] <= self.reached:
            _, target, values = self._copies.pop(0)
            with torch.inference_mode(target.is_inference()), torch.no_grad():
                target.copy_(values)


queue = Queue()


class Event:
    """As ``torch.cuda.Event``: a mark in the queue. A device that nothing waits for reaches it at the second ``query``.

    Args:
        enable_timing, blocking, interprocess: taken as torch's events do.
    """

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self._mark = 0
        self._asked = False

    def record(self, stream: Any = None) -> None:
        """Mark what the device was asked to do so far."""
        self._mark = queue.mark()
        self._asked = False

    def query(self) -> bool:
        """Whether the device has got to the mark."""
        if self._asked:
            queue.finish(self._mark)
        self._asked = True
        return queue.reached >= self._mark

    def synchronize(self) -> None:
        """Wait for the mark."""
        if queue.reached < self._mark:
            note_wait("Event.synchronize", self._mark)

    def wait(self, stream: Any = None) -> None:
        """Let a stream wait; there is but one."""

    def elapsed_time(self, other: "Event") -> float:
        """Milliseconds between two events: none."""
        return 0.0


class Stream:
    """As ``torch.cuda.Stream``; there is one queue all the same."""

    device = property(lambda self: torch.device(NAME, 0))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *args: Any) -> None:
        pass

    def synchronize(self) -> None:
        """Wait for the device."""
        note_wait("Stream.synchronize")

    def record_event(self, event: Event | None = None) -> Event:
        """Mark what the device was asked to do so far."""
        event = Event() if event is None else event
        event.record()
        return event

    def wait_event(self, event: Event) -> None:
        """Let the stream wait for an event."""

    def wait_stream(self, stream: "Stream") -> None:
        """Let the stream wait for another."""

    def query(self) -> bool:
        """Whether the device has nothing left to do."""
        return queue.reached == queue.count


class Backend:
    """What ``torch.get_device_module("pretend")`` gives."""

    Event, Stream = Event, Stream

    def is_available(self) -> bool:
        """Always."""
        return True

    is_initialized = is_available

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        """There is one."""
        return 1

    def current_device(self) -> int:
        """Its number."""
        return 0

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Types for autocast."""
        return [torch.bfloat16, torch.float16]

    def synchronize(self, device: Any = None) -> None:
        """Wait for the device."""
        note_wait("synchronize")

    def current_stream(self, device: Any = None) -> Stream:
        """The one stream."""
        return Stream()

    default_stream = current_stream

    def stream(self, stream: Stream) -> Stream:
        """A context in which a stream is current."""
        return stream

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        """The state of the generator that is shared with the CPU."""
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        """Restore that state; ``torch.set_rng_state`` does too."""
        torch.set_rng_state(state)

    def manual_seed(self, seed: int) -> None:
        """Seed the generator that is shared with the CPU."""
        torch.default_generator.manual_seed(seed)

    manual_seed_all = manual_seed

    def set_device(self, device: Any) -> None:
        """There is but one."""

    def empty_cache(self) -> None:
        """There is none."""

    def memory_allocated(self, device: Any = None) -> int:
        """Bytes that are not counted."""
        return 0

    max_memory_allocated = memory_reserved = max_memory_reserved = memory_allocated

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        """Nothing is counted."""


class DeviceGenerator(torch._C.Generator):
    """A generator for tensors of the device."""

    device = property(lambda self: torch.device(NAME, 0))
    _addresses: set[int] = set()  # torch gives kernels other objects for the same generator

    def __new__(cls, device: Any = None) -> "DeviceGenerator":
        generator = super().__new__(cls, "cpu")
        cls._addresses.add(generator._cdata)
        return generator

    def __del__(self) -> None:
        self._addresses.discard(self._cdata)

    @classmethod
    def knows(cls, generator: torch._C.Generator) -> bool:
        """Whether ``generator`` is one of the device."""
        return generator._cdata in cls._addresses


class _GeneratorKind(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, torch._C.Generator)

    def __call__(cls, device: Any = "cpu") -> torch._C.Generator:
        return DeviceGenerator() if torch.device(device).type == NAME else torch._C.Generator(device)


class generator_class(metaclass=_GeneratorKind):  # noqa: N801, stands for torch.Generator
    """``torch.Generator`` that knows the device."""


def autocast_kernels() -> list[torch.library.Library]:
    """Register autocast as CUDA has it: products in the type asked for, sums and the like in float32."""
    others = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    others.fallback(torch.library.fallthrough_kernel)
    kernels = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    for names, half in ((HALF, True), (SINGLE, False)):
        for packet in (getattr(torch.ops.aten, name) for name in names):
            for overload in packet.overloads():
                func = getattr(packet, overload)
                if not any(argument.is_out for argument in func._schema.arguments):
                    kernels.impl(func, _casting(func, half))
    return [others, kernels]


def _casting(func: torch._ops.OpOverload, half: bool) -> Callable:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, torch.Tensor):
            ours = value.device.type == NAME and value.is_floating_point() and value.dtype != torch.float64
            return value.to(dtype) if ours else value
        return [cast(part, dtype) for part in value] if isinstance(value, list | tuple) else value

    def kernel(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(NAME) if half else torch.float32
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return func(*cast(args, dtype), **{name: cast(value, dtype) for name, value in kwargs.items()})

    return kernel
