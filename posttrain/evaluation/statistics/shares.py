"""Intervals of means of scores between 0 and 1: shares of right answers, win rates."""

from __future__ import annotations

import numpy as np
from scipy import stats

from posttrain.evaluation.statistics.alike import reach
from posttrain.evaluation.statistics.estimate import Array, Estimate


def interval_of_share(found: Estimate, examples: int | None, level: float = 0.95) -> tuple[Array, Array]:
    """The interval of a mean m, [...] each end: on the scale h(p) = (2p - 1) / sqrt(p (1 - p)), by h'(m) se, and taken back.

    It lies within [0, 1], and reaches farther towards 1/2. Near 1 most seeds and examples show nothing of the few bad ones that pull the
    mean down, so that m comes out too high just where its error comes out too small: the studentised mean is skew. To second order a
    scale with h''/h' = -2 k3 / (3 s^4) takes that away, k3 being the third central moment of what is averaged and s^2 its variance (as
    in Hall, J. R. Statist. Soc. B 54 (1992) 221-228, whose moments are estimated: few seeds do not show them). With h' = (p (1 - p))^-g
    that is g = 2 for seeds whose logits are normal, 4/3 for seeds with a beta distribution, 2/3 for the answers of one model. 3/2 lies
    between, and has a closed form.

    How far the scale stretches a side is taken at the quantile, or, below two degrees of freedom, at that of the normal distribution: a
    quantile of 13 is beyond what holds to second order, and would make the interval of two seeds several times as wide for the same
    coverage.

    Where nothing varies: what so many `examples` can still hide (`alike.reach`), NaN if they are None. NaN too where the variance is.
    """
    still = found.variance == 0
    mean, se = (np.where(found.variance > 0, part, np.nan) for part in (found.value, found.se))
    quantile = found.quantile(1 - level)
    at = np.where(np.asarray(found.df) < 2, np.minimum(quantile, stats.norm.isf((1 - level) / 2)), quantile)
    spread = mean * (1 - mean)
    scaled, far = (2 * mean - 1) / np.sqrt(spread), at * se / (2 * spread**1.5)
    below, above = (mean - _back(scaled - far)) * quantile / at, (_back(scaled + far) - mean) * quantile / at
    hidden = np.nan if examples is None else reach(examples, level)
    low, high = np.where(still, found.value - hidden, mean - below), np.where(still, found.value + hidden, mean + above)
    return np.maximum(low, 0.0), np.minimum(high, 1.0)


def _back(scaled: Array) -> Array:
    """p of h(p)."""
    found: Array = 0.5 + scaled / (2 * np.sqrt(np.square(scaled) + 4))
    return found
