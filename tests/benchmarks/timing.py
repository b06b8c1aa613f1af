"""Time works in turn, on any device, and set a device up to be timed."""

import contextlib
import statistics
import time

import torch

from scripts.networks import has_bfloat16


def synchronize(device):
    """Wait until a GPU has done what it was given; a CPU has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work, device="cpu"):
    """Seconds that ``work()`` takes, until its results are there."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def in_turn(ours, other, repeats, device="cpu"):
    """Medians of ``repeats`` turns of each of two works, after one that is not timed."""
    ours(), other()  # warm up
    turns = [(seconds(ours, device), seconds(other, device)) for _ in range(repeats)]
    return tuple(statistics.median(column) for column in zip(*turns))


def best_precision(device="cpu"):
    """bfloat16 where the device has instructions for it, elsewhere it is emulated and slower than float32."""
    if torch.device(device).type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if has_bfloat16() else "float32"


def precision_of(parser, device="cpu"):
    """The type in which the configs let a network work; "auto" is bfloat16 on GPUs that have it, else float32."""
    precision = parser.get_parsed_content("precision")
    if precision != "auto":
        return precision
    return best_precision(device) if torch.device(device).type == "cuda" else "float32"


def autocast(device, precision):
    """``torch.autocast`` for a device and the name of a type."""
    return torch.autocast(torch.device(device).type, getattr(torch, precision), enabled=precision != "float32")


@contextlib.contextmanager
def plain_flags():
    """PyTorch's own settings, with cuDNN's benchmark on, whatever others set; theirs come back."""
    cudnn, deterministic = torch.backends.cudnn, torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    flags, matmul = (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32), torch.get_float32_matmul_precision()
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = True, False, True
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = flags
        torch.set_float32_matmul_precision(matmul)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def peak_gib(device):
    """Most GPU memory in use and held since the last ``reset_peak``, in GiB; ``None`` on a CPU."""
    if torch.device(device).type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) / 2**30, torch.cuda.max_memory_reserved(device) / 2**30


def reset_peak(device):
    """Give unused GPU memory back, and begin to measure its peak."""
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
