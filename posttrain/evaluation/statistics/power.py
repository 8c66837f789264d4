"""How likely a difference is seen, and how many seeds would show it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from posttrain.evaluation.statistics.crossed import Crossed, example_variance, split
from posttrain.evaluation.statistics.estimate import Array, cochran, satterthwaite

LEVELS = (np.arange(8) + 0.5) / 8  # of what the seeds' variances may be
SURE = 30.0  # standard errors: beyond, the noncentral t is 1 to all digits, and its algorithm is not


@dataclass(frozen=True)
class Noise:
    """What a difference of two arms varies by. one, other: variance of a seed's mean; examples: the part that seeds do not remove, with
    example_df degrees of freedom (0 and infinite where runs are single numbers). rest: what is in both arms' seeds, and in the examples'
    means too. known_df: degrees of freedom with which the seeds' variances are known; infinite where they are not estimates."""

    one: float
    other: float
    examples: float = 0.0
    example_df: float = float("inf")
    rest: float = 0.0
    known_df: float = float("inf")

    def at(self, seeds: int, factor: float = 1.0) -> tuple[float, float, float]:
        """With this many seeds an arm: the variance of the difference, the one that a test would use, and its degrees of freedom.

        factor: by which seeds vary more than what was seen.
        """
        by_seeds, rest = factor * (self.one + self.other) / seeds, self.rest / seeds
        terms = [(np.array(factor * part / seeds), seeds - 1.0) for part in (self.one, self.other)]
        df = satterthwaite(np.array(by_seeds), terms)
        used = split((np.array(by_seeds), df), self.examples + rest, rest)
        return by_seeds + self.examples, float(sum(used)), float(cochran([(used[0], df), (used[1], self.example_df)]))


def noise_of(one: Crossed, other: Crossed) -> Noise:
    """As estimated from two arms of several seeds each."""
    first, second = (float(arm.seeds.var(ddof=1)) for arm in (one, other))
    rest = sum(float(arm.rest_term[0]) * arm.seeds.shape[-1] for arm in (one, other))
    known = satterthwaite(
        np.array(first + second), [(np.array(part), arm.seeds.shape[-1] - 1.0) for part, arm in ((first, one), (second, other))]
    )
    return Noise(first, second, float(example_variance(one, other)), float(one.examples.shape[-1] - 1), rest, float(known))


def power(
    difference: float | Array, variance: float | Array, df: float | Array, *, used: float | Array | None = None, alpha: float = 0.05
) -> Array:
    """Probability that a two-sided t-test at `alpha` calls this difference one: of the noncentral t with noncentrality difference / se.

    used: the variance that the test takes for `variance`, if another one. Cohen, Statistical Power Analysis, 1988, chapter 12.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        away = np.abs(difference) / np.sqrt(variance)
        stretch = np.sqrt((variance if used is None else used) / np.asarray(variance, float))
    away, stretch = np.where(np.isnan(away), 0.0, away), np.where(np.isfinite(stretch), stretch, 1.0)
    limit = stats.t.ppf(1 - alpha / 2, df) * stretch
    inside = np.minimum(away, SURE)
    seen = stats.nct.sf(limit, df, inside) + stats.nct.cdf(-limit, df, inside)
    return np.where(away > SURE, 1.0, np.clip(np.nan_to_num(seen, nan=1.0), 0.0, 1.0))


def power_with(noise: Noise, difference: float, seeds: int, *, alpha: float = 0.05) -> float:
    """`power` with this many seeds an arm, on average over what the seeds' variances may be given their estimates.

    These times k / chi^2_k with k = 1.5 df^2, by simulation: with the estimates as if they were the truth (k infinite), studies of two
    seeds state up to twelve points too much, with k = df those of any number ten too little.
    """
    df = 1.5 * noise.known_df**2
    factors = [1.0] if np.isinf(df) else (df / stats.chi2.ppf(LEVELS, df)).tolist()
    variance, used, known = (np.array(column) for column in zip(*(noise.at(seeds, factor) for factor in factors), strict=True))
    return float(power(difference, variance, known, used=used, alpha=alpha).mean())


def seeds_needed(noise: Noise, difference: float, *, wanted: float = 0.8, alpha: float = 0.05, most: int = 1000) -> int | None:
    """The fewest seeds an arm, 2 or more, with which `difference` is called one with probability `wanted`; None if `most` are too few.

    With the noise as it was estimated, which from few seeds is a rough guess.
    """

    def enough(seeds: int) -> bool:
        return power_with(noise, difference, seeds, alpha=alpha) >= wanted

    if not enough(most):
        return None
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
