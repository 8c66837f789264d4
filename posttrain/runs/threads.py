"""How many CPU threads there may be, and how they wait for each other.

Call `spin_briefly` before torch is imported: the OpenMP runtime reads its settings when it is loaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

SPINS = "1000"  # a few microseconds: as fast as the runtime's own choice on idle cores
CORES = "POSTTRAIN_CORES"  # in the environment of a process that a cluster gave so many, whether or not it is bound to them


def spin_briefly() -> None:
    """Let OpenMP threads spin only briefly at barriers before they sleep, unless the user says otherwise.

    The runtime's own choice spins for milliseconds: two programs of two threads on two cores then take the processor from the very
    threads they wait for, and were seen to run at a quarter of their speed alone instead of half.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def usable_cores(environment: Mapping[str, str]) -> int:
    """Cores that this process may run on: taskset, a container or a cluster may allow it fewer than the machine has."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(allowed, int(environment.get(CORES, allowed)))
