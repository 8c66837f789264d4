"""Two measurements of one run, example by example: what it scored at the one less what it scored at the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from posttrain.evaluation.scores import Scores
from posttrain.runs.comparison.metric import by_example
from posttrain.runs.kept_scores import kept_scores_at


def scores_at(run: Path, step: int, metric: str, value: float) -> Scores | None:
    """A metric's scores after a step. None where none were kept, or they do not make `value`, which the run logged there."""
    found = kept_scores_at(run, step).get(metric)
    return found if found is not None and np.isclose(found.mean, value, rtol=1e-4, atol=1e-6) else None


def apart(one: Scores | None, other: Scores | None) -> tuple[tuple[str, ...], np.ndarray] | None:
    """Names of the examples and one - other for each, [N], weighted so that their mean is the difference of the means.

    None where either is None, or they are not of the same two or more examples, weighed alike.
    """
    if one is None or other is None:
        return None
    (names, values, weights), (others, less, beside) = by_example(one), by_example(other)
    if len(names) < 2 or not np.array_equal(names, others) or not np.allclose(weights, beside):
        return None
    return tuple(names.tolist()), weights / weights.mean() * (values - less)
