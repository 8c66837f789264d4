"""How CPU threads wait for each other. Call before torch is imported: the OpenMP runtime reads its settings when it is loaded."""

from __future__ import annotations

import os


def sleep_while_waiting() -> None:
    """Let OpenMP threads sleep at barriers instead of spinning, unless the user says otherwise (OMP_WAIT_POLICY).

    Spinning threads take the processor from the ones they wait for as soon as two programs share the cores: two runs on two cores were
    seen 50 times slower each, and sleeping ones 4 times.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
