"""The card, its software, and the largest matrix products that it does in a second."""

import os
import platform
import shutil
import statistics
import subprocess

import torch
from table import Conditions, Row
from timing import best_precision, seconds

TYPES = {  # name: type of the matrices, and precision of float32 products
    "float32": (torch.float32, "highest"),
    "TF32": (torch.float32, "high"),
    "bfloat16": (torch.bfloat16, "highest"),
}


def matmul_tflops(name: str, device: str, size: int, repeats: int = 7) -> float:
    """10^12 operations per second of a product of two matrices of ``size`` x ``size`` in a type of ``TYPES``."""
    dtype, precision = TYPES[name]
    before = torch.get_float32_matmul_precision()
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    products = 4 if device == "cuda" else 1

    def work():
        for _ in range(products):
            torch.mm(a, b)

    torch.set_float32_matmul_precision(precision)
    try:
        seconds(work, device)  # the first product chooses a kernel
        best = statistics.median(seconds(work, device) for _ in range(repeats))
    finally:
        torch.set_float32_matmul_precision(before)
    return products * 2 * size**3 / best / 1e12


def peak_tflops(precision: str, conditions: Conditions) -> tuple[str, float]:
    """The type whose peak a network in ``precision`` can reach on this device, and that peak.

    Convolutions in float32 are products in TF32 on a GPU, as PyTorch has it.
    """
    name = "bfloat16" if precision == "bfloat16" else "TF32" if conditions.device == "cuda" else "float32"
    return name, matmul_tflops(name, conditions.device, conditions.of(8192, 256))


def driver() -> str:
    """Version of the NVIDIA driver."""
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.splitlines()[0].strip() if result.returncode == 0 and result.stdout.strip() else "unknown"


def environment(conditions: Conditions):
    """Card and software, and its peak in each type."""
    numbers = {"torch": torch.__version__, "python": platform.python_version(), "cores": len(os.sched_getaffinity(0))}
    software = [f"torch {numbers['torch']}", f"Python {numbers['python']}", f"{numbers['cores']} cores"]
    card = "no GPU"
    if conditions.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        numbers |= {
            "card": properties.name,
            "memory_gib": properties.total_memory / 2**30,
            "cards": torch.cuda.device_count(),
            "driver": driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "bfloat16": best_precision("cuda") == "bfloat16",
        }
        card = f"{numbers['cards']} × {numbers['card']}, {numbers['memory_gib']:.0f} GiB"
        software.insert(0, f"driver {numbers['driver']}")
        software.insert(2, f"CUDA {numbers['cuda']}, cuDNN {numbers['cudnn']}")
        software.append(f"bfloat16: {'yes' if numbers['bfloat16'] else 'no'}")
    yield Row("card", card, ", ".join(software), numbers=numbers)
    size = conditions.of(8192, 256)
    peaks = {name: matmul_tflops(name, conditions.device, size) for name in TYPES}
    figure = ", ".join(f"{name} {value:.3g}" for name, value in peaks.items())
    yield Row(f"product of two matrices of {size}²", f"{figure} TFLOP/s", numbers=peaks)
