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
    asked = {what: machine.request(what, hardware) for what in ("cpus", "gpus", "memory", "minutes")}
    minutes = int(asked["minutes"] or 0) if known else max(10, math.ceil(60 * ROOM * float(hours or 0)))
    devices = hardware["devices"]
    return [
        f"--nodes={hardware['nodes']}",
        f"--ntasks-per-node={devices}",
        f"--cpus-per-task={hardware['cpus_per_device']}",
        *([f"--gpus-per-node={asked['gpus']}"] if asked["gpus"] else []),
        *([f"--mem={asked['memory']}GB"] if asked["memory"] else []),
        f"--time={minutes // 60}:{minutes % 60:02d}:00",
    ]
