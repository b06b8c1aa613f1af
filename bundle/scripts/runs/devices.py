"""The device that does the work: which it is, what suits it, and tensors on their way between it and the host.

A GPU works behind the program that feeds it. Whatever reads a value from it, or copies to it from memory that is not
pinned, waits until all of its work is done; ``to_device`` and ``HostCopy`` do not.
"""

import logging
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from monai.utils import set_determinism

from ..errors import BundleError

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
THREADS_BESIDE_A_GPU = 4  # the GPU computes; more threads only get in the way of other runs
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "quota period" in microseconds, or "max period"


def join_processes(device: str | torch.device = "cpu") -> None:
    """Let the processes of ``torchrun`` find one another; without it, do nothing.

    Args:
        device: what they compute on and exchange.
    """
    if "WORLD_SIZE" in os.environ and not torch.distributed.is_initialized():
        backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, timeout=timedelta(days=7))  # one may wait long for another
        os.environ["SLURM_LOCALID"] = os.environ["LOCAL_RANK"]  # of the process, not of Slurm's task: Ignite looks here
        torch.distributed.barrier()


def require_device(device: str | torch.device) -> torch.device:
    """``device`` if it is on this machine.

    Raises:
        BundleError: if it names no device, or one that is not there; it says which are.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise BundleError(f"`device` must be a device such as 'cpu' or 'cuda:0', got {device!r}.") from error
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    missing = {"cuda": (found.index or 0) >= gpus, "mps": not torch.backends.mps.is_available()}
    if missing.get(found.type, False):
        names = ", ".join(f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(gpus))
        raise BundleError(
            f"`device` must be one of this machine's, got {str(found)!r}; PyTorch {torch.__version__} sees "
            f"{names or 'no GPU'} beside the CPU: give --device {'cuda:0' if gpus else 'cpu'}."
        )
    return found


def prepare_device(device: str | torch.device, deterministic: bool = False) -> None:
    """Get ready to work on ``device``: which algorithms, and as many CPU threads as the work beside it takes.

    Convolutions in float32 are exact, so that masks are those of a CPU; PyTorch would round to TF32 on a GPU.

    Args:
        device: where the networks work.
        deterministic: take algorithms alone that give the same numbers every time.

    Raises:
        BundleError: if ``device`` is not on this machine.
    """
    found = require_device(device)
    if found.type == "cuda" and found.index is not None:
        torch.cuda.set_device(found)
    _choose_algorithms(deterministic)
    if found.type != "cpu":
        torch.set_num_threads(_threads_asked_for() or min(THREADS_BESIDE_A_GPU, cpu_cores()))


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seed all random generators with ``seed``, at least 0; ``deterministic`` as in ``prepare_device``."""
    set_determinism(seed=seed)  # also makes cuDNN deterministic
    _choose_algorithms(deterministic)


def _choose_algorithms(deterministic: bool) -> None:
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = deterministic, False
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


@contextmanager
def training_algorithms(benchmark: bool = True) -> Iterator[None]:
    """What cuDNN does within, where training steps are made: float32 convolutions may be products in TF32.

    Args:
        benchmark: measure which algorithm is the fastest for each size that is met: worth it for few sizes.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32
    cudnn.benchmark, cudnn.allow_tf32 = benchmark, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32 = before


def cpu_cores() -> int:
    """How many CPU cores this process may use by itself: those of its affinity and its container's quota, shared with
    the other processes that ``torchrun`` started on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if CPU_QUOTA.is_file():
        quota, period = CPU_QUOTA.read_text(encoding="ascii").split()
        cores = cores if quota == "max" else min(cores, round(int(quota) / int(period)))
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def worker_threads(most: int) -> int:
    """How many threads of its own this process may start: its cores, or as many as ``OMP_NUM_THREADS`` says; at most
    ``most``."""
    return min(most, _threads_asked_for() or cpu_cores())


def _threads_asked_for() -> int | None:
    """What ``OMP_NUM_THREADS`` says; ``None`` if nothing, or the 1 that torchrun sets where nobody else does."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    by_torchrun = text == "1" and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1
    return int(text) if text.isdecimal() and int(text) > 0 and not by_torchrun else None


def chosen_precision(precision: str, device: str | torch.device) -> str:
    """What ``precision`` is on ``device``: ``"auto"`` is bfloat16 on CUDA GPUs that have it, and float32 elsewhere.

    Args:
        precision: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: where the networks work.
    """
    if precision not in PRECISIONS:
        raise BundleError(f"`precision` must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    if precision != "auto":
        return precision
    found = torch.device(device)
    if found.type != "cuda":
        return "float32"
    with torch.cuda.device(found):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


def description(device: str | torch.device, precision: str, deterministic: bool) -> dict[str, Any]:
    """What a run's record says of how it was computed: the device's name, ``precision`` and ``deterministic``."""
    found = torch.device(device)
    name = torch.cuda.get_device_name(found) if found.type == "cuda" else platform.processor() or platform.machine()
    repeats = deterministic or found.type == "cpu"  # whether the same computation gives the same numbers again
    return {"device": f"{found}, {name}", "precision": precision, "deterministic": repeats}


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Say in plain words what to do if the device's memory does not suffice for what is done within.

    Args:
        advice: what halves the memory, for instance ``"halve --eval_batch_size"``.

    Raises:
        BundleError: in the place of PyTorch's ``OutOfMemoryError``.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise BundleError(memory_sentence(error, advice)) from error


def memory_sentence(error: torch.OutOfMemoryError, advice: str) -> str:
    """What to say of an ``OutOfMemoryError``; ``advice`` as in ``memory_advice``."""
    wanted = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
    return f"the GPU's memory is full{f', {wanted[1]} more are wanted' if wanted else ''}; {advice}."


def to_device(tensor: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """A host's ``tensor`` on ``device``; nothing waits for what the device is doing.

    (But for MPS, which may read a tensor after it is gone.)
    """
    kind = torch.device(device).type
    if kind == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=kind != "mps")


class HostCopy:
    """A device's tensor on its way to the host's memory; nothing waits before it is asked for.

    Args:
        tensor: what is copied, of any shape; later changes of it do not show in the copy.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        tensor, device = tensor.detach(), tensor.device
        module = torch.get_device_module(device)
        self._arrived: Any = None
        if device.type == "cpu":
            self._copy = tensor.clone()
        elif device.type == "mps" or not hasattr(module, "Event"):  # nothing would tell when the copy is there
            self._copy = tensor.cpu()
        else:
            self._copy = tensor.to("cpu", non_blocking=True)
            self._arrived = module.Event(**({"blocking": True} if device.type == "cuda" else {}))  # threads sleep
            self._arrived.record(module.current_stream(device))

    def is_there(self) -> bool:
        """Whether the copy is complete, so that nothing would wait for it."""
        return self._arrived is None or self._arrived.query()

    def get(self) -> torch.Tensor:
        """The copy, in the host's memory, once it is complete."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copy
