"""Between which values a metric lies by what it is, so that no interval says what cannot be."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

Bounds = tuple[float, float]
NONE: Bounds = (-math.inf, math.inf)
SHARE: Bounds = (0.0, 1.0)
# A filter of lm-evaluation-harness may follow a name; `val/loss` is each method's own and may be below 0.
KNOWN: tuple[tuple[str, Bounds], ...] = (
    (r"(exact_match|answered|greedy|accuracy|accuracy_norm|token_accuracy|acc|acc_norm|(pass|maj)_at_\d+)", SHARE),
    (r"(rewards/accuracy|win_rate/[^/]+|win_rate|ece)", SHARE),
    (r"(nll|bits_per_byte|wer|ter)", (0.0, math.inf)),
    (r"(perplexity|word_perplexity|byte_perplexity)", (1.0, math.inf)),
)


def bounds_of(metric: str, values: Sequence[np.ndarray]) -> Bounds:
    """By the metric's name, as far as its values keep to it (some harness tasks count in percent).

    values: of each arm, [S, N] of examples or [S] of runs. (0, 1) also where all examples are right or wrong.
    """
    if all(some.ndim > 1 and np.isin(some, (0.0, 1.0)).all() for some in values):
        return SHARE
    for name, (low, high) in KNOWN:
        if re.search(rf"(^|/){name}(/[^/]+)?$", metric) and all((some >= low).all() and (some <= high).all() for some in values):
            return low, high
    return NONE


def cut(interval: Bounds, bounds: Bounds) -> Bounds:
    """The part of an interval that is possible: what covers the truth, covers it still. NaN stays."""
    low, high = (float(np.clip(end, *bounds)) for end in interval)
    return low, high


def of_difference(bounds: Bounds) -> Bounds:
    """Between which values the difference of two such metrics lies."""
    return bounds[0] - bounds[1], bounds[1] - bounds[0]


def bounds_note(bounds: Bounds) -> str:
    """What a reader is told."""
    if bounds == SHARE:
        return (
            "It lies between 0 and 1 by what it is: intervals of means reach farther towards 1/2, and of those of differences what is "
            "impossible is cut off."
        )
    return f"It lies at {bounds[0]:g} or above by what it is, and so do the intervals: what of them is impossible is cut off."
