"""Choose and configure the compute device, and move tensors between it and the host.

A GPU runs asynchronously behind the program that feeds it. Reading a value from it, or copying to it from memory that
is not pinned, waits until all of its work is done; ``to_device`` and ``HostCopy`` do not wait.
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
    """Initialise the process group under ``torchrun``; otherwise do nothing.

    Args:
        device: the type of device on which the processes compute and exchange tensors.
    """
    if "WORLD_SIZE" in os.environ and not torch.distributed.is_initialized():
        backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
        torch.distributed.init_process_group(
            backend, timeout=timedelta(days=7)
        )  # one process may wait long for another
        os.environ["SLURM_LOCALID"] = os.environ[
            "LOCAL_RANK"
        ]  # Ignite reads this; it must be the process's rank, not the Slurm task's
        torch.distributed.barrier()


def require_device(device: str | torch.device) -> torch.device:
    """Return ``device`` if this machine has it.

    Raises:
        BundleError: if it is not a device or not available; the message lists the available ones.
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
            f"`device` must exist on this machine, got {str(found)!r}; PyTorch {torch.__version__} sees "
            f"{names or 'no GPU'} besides the CPU: pass --device {'cuda:0' if gpus else 'cpu'}."
        )
    return found


def prepare_device(device: str | torch.device, deterministic: bool = False) -> None:
    """Configure PyTorch for ``device``: its algorithms, and as many CPU threads as the work beside it needs.

    Convolutions use full float32, so that masks match those of a CPU; by default PyTorch uses TF32 on GPUs.

    Args:
        device: where the networks run.
        deterministic: use only algorithms that give the same numbers every time.

    Raises:
        BundleError: if this machine does not have ``device``.
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
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


@contextmanager
def training_algorithms(benchmark: bool = True) -> Iterator[None]:
    """Configure cuDNN for training steps within this context: float32 convolutions may use TF32.

    Args:
        benchmark: measure which algorithm is fastest for each input size; worthwhile if there are few sizes.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32
    cudnn.benchmark, cudnn.allow_tf32 = benchmark, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32 = before


def cpu_cores() -> int:
    """Number of CPU cores for this process: those allowed by its affinity and its container's quota, divided among the
    processes that ``torchrun`` started on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if CPU_QUOTA.is_file():
        quota, period = CPU_QUOTA.read_text(encoding="ascii").split()
        cores = cores if quota == "max" else min(cores, round(int(quota) / int(period)))
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def worker_threads(most: int) -> int:
    """Number of worker threads this process may start: ``OMP_NUM_THREADS`` if set, else its cores; at most ``most``."""
    return min(most, _threads_asked_for() or cpu_cores())


def _threads_asked_for() -> int | None:
    """The value of ``OMP_NUM_THREADS``; ``None`` if unset, or if it is the default of 1 that torchrun sets."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    by_torchrun = text == "1" and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1
    return int(text) if text.isdecimal() and int(text) > 0 and not by_torchrun else None


def chosen_precision(precision: str, device: str | torch.device) -> str:
    """Resolve ``precision`` for ``device``: ``"auto"`` is bfloat16 on CUDA GPUs that support it, else float32.

    Args:
        precision: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: where the networks run.
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
    """How a run was computed, for its record: the device's name, ``precision`` and ``deterministic``."""
    found = torch.device(device)
    name = torch.cuda.get_device_name(found) if found.type == "cuda" else platform.processor() or platform.machine()
    repeats = deterministic or found.type == "cpu"  # whether a repeated computation gives the same numbers
    return {"device": f"{found}, {name}", "precision": precision, "deterministic": repeats}


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Replace out-of-memory errors raised within this context by a message that says what to do.

    Args:
        advice: how to reduce memory use, for instance ``"halve --eval_batch_size"``.

    Raises:
        BundleError: instead of PyTorch's ``OutOfMemoryError``.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise BundleError(memory_sentence(error, advice)) from error


def memory_sentence(error: torch.OutOfMemoryError, advice: str) -> str:
    """The message for an ``OutOfMemoryError``; ``advice`` as in ``memory_advice``."""
    wanted = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
    return f"the GPU is out of memory{f', {wanted[1]} more needed' if wanted else ''}; {advice}."


def to_device(tensor: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """Copy a host ``tensor`` to ``device`` without waiting for the device.

    (Except on MPS, which might read the tensor after it has been freed.)
    """
    kind = torch.device(device).type
    if kind == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=kind != "mps")


class HostCopy:
    """An asynchronous copy of a device tensor to host memory; only ``get`` waits for it.

    Args:
        tensor: the tensor to copy, of any shape; later changes to it do not affect the copy.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        tensor, device = tensor.detach(), tensor.device
        module = torch.get_device_module(device)
        self._arrived: Any = None
        if device.type == "cpu":
            self._copy = tensor.clone()
        elif device.type == "mps" or not hasattr(module, "Event"):  # nothing would signal that the copy is complete
            self._copy = tensor.cpu()
        else:
            self._copy = tensor.to("cpu", non_blocking=True)
            self._arrived = module.Event(**({"blocking": True} if device.type == "cuda" else {}))  # threads sleep
            self._arrived.record(module.current_stream(device))

    def is_there(self) -> bool:
        """Whether the copy is complete, so that ``get`` would not wait."""
        return self._arrived is None or self._arrived.query()

    def get(self) -> torch.Tensor:
        """The copy in host memory, once it is complete."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copy
