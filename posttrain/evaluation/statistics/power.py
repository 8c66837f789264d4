"""How likely a difference is seen, and how many seeds would show it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from posttrain.evaluation.statistics.crossed import Crossed, example_variance
from posttrain.evaluation.statistics.estimate import Array, satterthwaite

SURE = 30.0  # standard errors: beyond, the noncentral t is 1 to all digits, and its algorithm is not


@dataclass(frozen=True)
class Noise:
    """What a difference of two arms varies by. one, other: variance of a seed's mean; examples: the part that seeds do not remove, with
    example_df degrees of freedom (0 and infinite where runs are single numbers)."""

    one: float
    other: float
    examples: float = 0.0
    example_df: float = float("inf")

    def at(self, seeds: int) -> tuple[float, float]:
        """Variance and degrees of freedom of the difference with this many seeds an arm."""
        terms = [(np.array(part / seeds), seeds - 1.0) for part in (self.one, self.other)]
        terms += [(np.array(self.examples), self.example_df)] if self.examples else []
        variance = np.array(sum(float(value) for value, _ in terms))
        return float(variance), float(satterthwaite(variance, terms))


def noise_of(one: Crossed, other: Crossed) -> Noise:
    """As estimated from two arms of several seeds each."""
    first, second = (float(arm.seeds.var(ddof=1)) for arm in (one, other))
    return Noise(first, second, float(example_variance(one, other)), float(one.examples.shape[-1] - 1))


def power(difference: float | Array, variance: float | Array, df: float | Array, *, alpha: float = 0.05) -> Array:
    """Probability that a two-sided t-test at `alpha` calls this difference one: of the noncentral t with noncentrality difference / se.

    Cohen, Statistical Power Analysis, 1988, chapter 12.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        away = np.abs(difference) / np.sqrt(variance)
    away = np.where(np.isnan(away), 0.0, away)
    limit = stats.t.ppf(1 - alpha / 2, df)
    inside = np.minimum(away, SURE)
    seen = stats.nct.sf(limit, df, inside) + stats.nct.cdf(-limit, df, inside)
    return np.where(away > SURE, 1.0, np.clip(np.nan_to_num(seen, nan=1.0), 0.0, 1.0))


def seeds_needed(noise: Noise, difference: float, *, wanted: float = 0.8, alpha: float = 0.05, most: int = 1000) -> int | None:
    """The fewest seeds an arm, 2 or more, with which `difference` is called one with probability `wanted`; None if `most` are too few.

    With the noise as it was estimated, which from few seeds is a rough guess.
    """

    def enough(seeds: int) -> bool:
        return bool(power(difference, *noise.at(seeds), alpha=alpha) >= wanted)

    if not enough(most):
        return None
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
