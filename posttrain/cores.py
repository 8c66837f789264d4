"""How many CPU cores this process may use."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

CORES = "POSTTRAIN_CORES"  # in the environment of a process that a cluster gave so many, whether or not it is bound to them


def usable_cores(environment: Mapping[str, str]) -> int:
    """Cores that this process may run on: taskset, a container or a cluster may allow it fewer than the machine has."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(allowed, int(environment.get(CORES, allowed)))
