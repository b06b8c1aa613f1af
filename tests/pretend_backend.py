"""What torch asks of the pretend device's module: its queue of copies, events, streams, generators and autocast."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import backend_registration

NAME = "pretend"
HALF = """addbmm addmm addmv addr baddbmm bmm chain_matmul conv1d conv2d conv3d conv_tbc conv_transpose1d
conv_transpose2d conv_transpose3d _convolution convolution einsum linalg_multi_dot linear matmul mm mv prelu
scaled_dot_product_attention""".split()
SINGLE = """acos asin binary_cross_entropy_with_logits cdist cosh cosine_embedding_loss cosine_similarity cumprod cumsum
dist erfinv exp expm1 group_norm hinge_embedding_loss huber_loss kl_div l1_loss layer_norm linalg_vector_norm log log10
log1p log2 log_softmax logsumexp margin_ranking_loss mse_loss multi_margin_loss multilabel_margin_loss nll_loss
nll_loss2d norm poisson_nll_loss pow prod reciprocal renorm rsqrt sinh smooth_l1_loss soft_margin_loss softmax softplus
sum tan triplet_margin_loss""".split()  # as CUDA's autocast has it


class Queue:
    """Copies to the CPU that the host did not wait for: their values are there once the device has got so far."""

    def __init__(self) -> None:
        self.count = 0  # copies so far
        self._pending: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def later(self, target: torch.Tensor, values: torch.Tensor | None = None) -> torch.Tensor:
        """Spoil ``target``, and give it ``values`` (by default those that it has) when the copy is waited for."""
        values = target.clone() if values is None else values
        with torch.no_grad():
            if target.dtype == torch.bool:
                target.copy_(values.logical_not())
            else:
                target.fill_(torch.nan if target.is_floating_point() else torch.iinfo(target.dtype).max)
        self.count += 1
        self._pending.append((self.count, target, values))
        return target

    def done(self, count: int) -> bool:
        """Whether the first ``count`` copies are there."""
        return not self._pending or self._pending[0][0] > count

    def finish(self, count: float = float("inf")) -> None:
        """Let the first ``count`` copies arrive."""
        while self._pending and self._pending[0][0] <= count:
            _, target, values = self._pending.pop(0)
            with torch.inference_mode(target.is_inference()), torch.no_grad():
                target.copy_(values)


queue = Queue()


class Event:
    """As ``torch.cuda.Event``: a mark in the device's queue. What it marks is never reached at the first ``query``.

    Args:
        enable_timing, blocking, interprocess: taken as torch's events do.
    """

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self._mark = 0
        self._asked = True

    def record(self, stream: Any = None) -> None:
        """Mark what the device was asked to do so far."""
        self._mark = queue.count
        self._asked = False

    def query(self) -> bool:
        """Whether the device has got to the mark."""
        if self._asked:
            queue.finish(self._mark)
        asked, self._asked = self._asked, True
        return asked

    def synchronize(self) -> None:
        """Wait for the mark."""
        if not self._asked or not queue.done(self._mark):
            Backend.on_wait("Event.synchronize")
        self._asked = True

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
        Backend.on_wait("Stream.synchronize")

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
        return queue.done(queue.count)


class Backend(backend_registration._DummyBackendModule):
    """What ``torch.get_device_module("pretend")`` gives."""

    Event, Stream = Event, Stream
    on_wait: Callable[[str], None]

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Types for autocast."""
        return [torch.bfloat16, torch.float16]

    def synchronize(self, device: Any = None) -> None:
        """Wait for the device."""
        self.on_wait("synchronize")

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
