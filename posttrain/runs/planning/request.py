"""What a cluster job asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from posttrain.runs import machine

ROOM = 1.5  # times the estimate, where no time limit is set


def lines(hardware: Mapping[str, Any], hours: float | None) -> list[str]:
    """Options of sbatch, as the SLURM launcher sends them; the time is the shape's limit, else the estimate with some room."""
    known = hardware["time_limit"] is not None or hours is None
    minutes = machine.request("minutes", hardware) if known else max(10, math.ceil(60 * ROOM * float(hours or 0)))
    gpus = machine.request("gpus", hardware)
    return [
        f"--nodes={hardware['nodes']}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={machine.request('cpus', hardware)}",
        *([f"--gpus-per-node={gpus}"] if gpus else []),
        f"--time={minutes // 60}:{minutes % 60:02d}:00",
    ]
