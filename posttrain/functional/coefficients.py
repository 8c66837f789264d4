"""How a coefficient (DPO's beta, a KL penalty) moves over a run: progress in [0, 1] -> factor on the configured value."""

from __future__ import annotations

import math


def constant(progress: float) -> float:
    """1."""
    return 1.0


def linear(progress: float, *, end: float = 0.1, start: float = 1.0) -> float:
    """From `start` to `end` in equal steps."""
    return start + (end - start) * progress


def cosine(progress: float, *, end: float = 0.1, start: float = 1.0) -> float:
    """From `start` to `end` along half a cosine wave: slow, fast, slow."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
