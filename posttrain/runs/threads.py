"""How CPU threads wait for each other.

Call `spin_briefly` before torch is imported: the OpenMP runtime reads its settings when it is loaded.
"""

from __future__ import annotations

import os

SPINS = "1000"  # a few microseconds: as fast as the runtime's own choice on idle cores


def spin_briefly() -> None:
    """Let OpenMP threads spin only briefly at barriers before they sleep, unless the user says otherwise.

    The runtime's own choice spins for milliseconds: two programs of two threads on two cores then take the processor from the very
    threads they wait for, and were seen to run at a quarter of their speed alone instead of half.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
