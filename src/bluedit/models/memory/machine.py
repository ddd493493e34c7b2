"""What the machine has: memory, and how fast it multiplies."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

__all__ = ["Memory", "memory_of", "product_speed"]

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Bytes in one place; `free` is what can still be had."""

    name: str
    total: int
    free: int


def memory_of(device: torch.device) -> Memory:
    """The memory of a device."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Memory(torch.cuda.get_device_name(device), total, free)
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    try:  # a container may be given less than the machine has, which psutil does not tell
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        total, free = min(total, limit), min(free, max(0, limit - used))
    except (OSError, ValueError):
        pass
    return Memory("main memory", total, free)


def product_speed(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """FLOP/s of a square matrix product, the best of those that fit into `seconds` (one at least)."""
    size = 1024 if device.type == "cpu" else 4096
    one = torch.ones(size, size, device=device, dtype=dtype)
    best, until = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < until:
        started = time.perf_counter()
        product = one @ one
        product[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
