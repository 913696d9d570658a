"""What the machine has and does: memory that is free, memory that was used, and how fast it multiplies matrices."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import psutil
import torch

from emo_mlflow.errors import UserError

PROBE_SECONDS = 0.3
PROBES = 5
SQUARE = {"cpu": 1024}  # large enough for a product to be as fast as it gets
SQUARE_ON_A_GPU = 8192


def free_memory(device: torch.device) -> int:
    """Bytes that a process may still take on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak: of tensors on a CUDA device since its statistics were reset, otherwise of this process since it began."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def best_gemm_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large square product: what no model's products exceed by much."""
    side = SQUARE.get(device.type, SQUARE_ON_A_GPU)
    return gemm_rate(device, dtype, side, side, side)


def gemm_rate(
    device: torch.device, dtype: torch.dtype, m: int, k: int, n: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Floating-point operations per second of a product [m, k] x [k, n]: the best of several measurements."""
    left = torch.randn(m, k, device=device, dtype=dtype)
    right = torch.randn(n, k, device=device, dtype=dtype).T  # as linear layers hold their weights

    def seconds(repeats: int) -> float:
        start = clock()
        for _ in range(repeats):
            product = left @ right
        float(product[0, 0])  # waits for the device
        return clock() - start

    seconds(2)
    repeats = max(1, int(PROBE_SECONDS / PROBES / max(seconds(1), 1e-6)))
    return repeats * 2.0 * m * k * n / min(seconds(repeats) for _ in range(PROBES))

def pick_device(name: str) -> torch.device:
    """`auto` (CUDA, else Apple's MPS, else the CPU), or a device by name.

    Raises:
        UserError: if there is no such device here.
    """
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    available = [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]
    if name == "auto":
        return torch.device(available[0])
    if name in available or (name == "cuda" and cuda):
        return torch.device("cuda:0" if name == "cuda" else name)
    why = ""
    if name.split(":")[0] == "cuda" and not cuda:
        built = torch.version.cuda
        why = f" (this PyTorch is built for CUDA {built}, and finds no GPU)" if built else " (this PyTorch is built without CUDA)"
    raise UserError(f"device {name!r} is not available here{why}: choose auto or {', '.join(available)}")
