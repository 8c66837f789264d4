"""Random numbers that belong to a sample: a hash of (seed, sample, step) instead of a generator with a state.

Sample j of a request with seed s draws the same numbers whatever else is in the batch, on whatever rank and device, in whatever order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
BITS = 48  # of a number; few enough that neither it nor its product with a sum of probabilities rounds up to the end of the range


def sample_keys(seed: int, samples: int) -> np.ndarray:
    """One uint64 key for each of the samples of a request."""
    with np.errstate(over="ignore"):
        base = _mix(np.uint64(seed % 2**64) + GOLDEN)
        keys: np.ndarray = _mix(base + np.arange(1, samples + 1, dtype=np.uint64) * GOLDEN)
    return keys


def uniforms(keys: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Numbers in (0, 1), float64 [B], of the samples with `keys` [B] at their tokens number `steps` [B]."""
    with np.errstate(over="ignore"):
        bits: np.ndarray = _mix(_mix(keys + (steps.astype(np.uint64) + np.uint64(1)) * GOLDEN))
    return ((bits >> np.uint64(64 - BITS)).astype(np.float64) + 0.5) / 2.0**BITS


def _mix(x: Any) -> Any:
    """uint64 -> uint64, elementwise: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, figure 17)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
