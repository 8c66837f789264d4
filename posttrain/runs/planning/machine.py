"""What a process takes before it holds a tensor, and how much a device can hold."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GIB = 2**30
# Resident memory that libraries take when they are first used (kernels, thread pools, tables), beyond what importing them takes. Measured:
# the peak of runs of the nano model less what `plan` counts for them (tests/benchmarks/plan_memory.py).
FIRST_USE = 140 * 2**20
# Assumed, not measured: a CUDA context with the libraries' workspaces, outside torch's allocator.
CUDA_CONTEXT = 1.0 * GIB
CUDA_USABLE = 0.97  # of a device's stated memory, assumed: the driver keeps the rest
# What the allocator holds beyond what lives. On a CPU the C library's heap keeps the gaps between tensors of changing sizes: measured,
# in runs of three steps, see tests/benchmarks/plan_memory.py; longer ones may hold more. On a GPU assumed.
SLACK = {"cpu": 0.3, "cuda": 0.05}


def overhead_of(accelerator: str) -> float:
    """Bytes that are taken before a model is there. On a CPU: this process, which has imported what a run imports."""
    return float(resident_bytes() + FIRST_USE) if accelerator == "cpu" else CUDA_CONTEXT


def resident_bytes(status: Path = Path("/proc/self/status")) -> int:
    """Resident memory of this process once it has imported what a run imports; a usual value outside Linux."""
    from posttrain.runs import session

    assert session.__name__
    if not status.exists():
        return 490 * 2**20
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def capacity_of(hardware: Mapping[str, Any]) -> float | None:
    """Bytes that one device can hold; None where nothing says. CPU processes of a machine share its memory."""
    if hardware["memory_gb"] is not None:
        return float(hardware["memory_gb"]) * GIB * (CUDA_USABLE if hardware["accelerator"] == "cuda" else 1.0)
    return machine_memory() / int(hardware["devices"]) if hardware["accelerator"] == "cpu" else None


def machine_memory(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> float:
    """Bytes of memory that this machine, or the container, has."""
    whole = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    text = limit.read_text().strip() if limit.exists() else "max"
    return whole if text == "max" else min(whole, float(text))
