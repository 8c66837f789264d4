"""From measured arms to estimates, intervals and tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal

import numpy as np

from posttrain.evaluation.statistics.alike import reach, unseen
from posttrain.evaluation.statistics.bootstrap import bootstrap_difference
from posttrain.evaluation.statistics.crossed import Crossed, crossed, difference, mean
from posttrain.evaluation.statistics.estimate import Estimate, rounded
from posttrain.evaluation.statistics.permutation import exchange, holm, sign_flip
from posttrain.evaluation.statistics.power import Noise, noise_of, power_with, seeds_needed
from posttrain.evaluation.statistics.scalars import hedges_g, paired, student, welch
from posttrain.evaluation.statistics.shares import interval_of_share
from posttrain.runs.comparison.bounds import SHARE, Bounds, bounds_of, cut, of_difference
from posttrain.runs.comparison.metric import Measured

ALPHA, POWER, MOST_SEEDS = 0.05, 0.8, 200
SIGN_FLIP, EXCHANGE = "sign flip of examples", "exchange of seeds"
# What a difference is about: methods (seeds are a sample of what might be), these very models, or nothing that can be said.
Scope = Literal["methods", "models", "none"]


@dataclass(frozen=True)
class Quality:
    """An arm's mean with its 95 % interval; NaN where a single number has none. values: of the runs, by seed."""

    name: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Pair:
    """`one` less `other`: places of arms. low, high: 95 % interval; close_low, close_high: 90 %, by which arms are equivalent.

    p: two-sided, of no difference. equivalence_p: of two one-sided tests. holm, equivalence_holm: the same, adjusted for all pairs tested.
    effect: Hedges' g over seeds, or over examples the mean difference in its standard deviations where there are no seeds to speak of.
    seeds_needed: an arm, to see the smallest difference that matters with 80 %; None if `MOST_SEEDS` are too few or it is not known.
    power: probability to have seen it with the present seeds. Both at `level_of` the pairs. tests: p-values of further tests, by name.
    """

    one: int
    other: int
    scope: Scope
    difference: float
    low: float
    high: float
    close_low: float
    close_high: float
    p: float
    equivalence_p: float
    effect: float
    power: float
    seeds_needed: int | None
    holm: float = float("nan")
    equivalence_holm: float = float("nan")
    tests: dict[str, float] = field(default_factory=dict)

    @property
    def adjusted(self) -> tuple[float, float]:
        """Holm's p-values: of a difference, and of equivalence."""
        return self.holm, self.equivalence_holm


@dataclass(frozen=True)
class Analysis:
    """reference: the arm that others are compared with: the baseline, or the best. pairs: all that were tested. bounds: of the metric.
    most: examples that some run was measured on, where those in common are fewer."""

    metric: str
    lower: bool
    smallest: float
    examples: int | None
    reference: int
    is_baseline: bool
    arms: tuple[Quality, ...]
    pairs: tuple[Pair, ...]
    bounds: Bounds
    most: int | None = None

    def against(self, arm: int) -> Pair | None:
        """`arm` less the reference, where they were tested (either way round)."""
        return self.between(arm, self.reference)

    def between(self, arm: int, other: int) -> Pair | None:
        """`arm` less another one, where they were tested (either way round)."""
        found = next((pair for pair in self.pairs if {pair.one, pair.other} == {arm, other}), None)
        return found if found is None or found.one == arm else turned(found)

    @property
    def order(self) -> list[int]:
        """Places of the arms, the best first."""
        return sorted(range(len(self.arms)), key=lambda place: self.arms[place].mean * (1 if self.lower else -1))


def turned(pair: Pair) -> Pair:
    """The same pair the other way round."""
    return replace(
        pair, one=pair.other, other=pair.one, difference=-pair.difference, effect=-pair.effect,
        low=-pair.high, high=-pair.low, close_low=-pair.close_high, close_high=-pair.close_low,
    )  # fmt: skip


def analyse(
    names: Sequence[str], seeds: Sequence[tuple[int, ...]], data: Measured, *, lower: bool, smallest: float, baseline: int | None
) -> Analysis:
    """All arms, and their pairs: those with the baseline, or every one where the best is only known from the same numbers."""
    parts = None if data.scores is None else [crossed(scores, data.weights) for scores in data.scores]
    bounds = bounds_of(data.metric, data.values if data.scores is None else data.scores)
    arms = tuple(_quality(names[k], seeds[k], data.values[k], None if parts is None else parts[k], bounds) for k in range(len(names)))
    best = min(range(len(arms)), key=lambda place: arms[place].mean * (1 if lower else -1))
    reference = best if baseline is None else baseline
    places = [*combinations(range(len(arms)), 2)] if baseline is None else [(k, baseline) for k in range(len(arms)) if k != baseline]
    level = level_of(len(places))
    pairs = [_bounded(_pair(one, other, seeds, data, parts, smallest, bounds, level), bounds) for one, other in places]
    different, alike = (holm(np.array([getattr(pair, key) for pair in pairs])) for key in ("p", "equivalence_p"))
    corrected = [replace(pair, holm=float(different[k]), equivalence_holm=float(alike[k])) for k, pair in enumerate(pairs)]
    examples = None if data.scores is None else len(data.examples)
    return Analysis(data.metric, lower, smallest, examples, reference, baseline is not None, arms, tuple(corrected), bounds, data.most)


def level_of(pairs: int) -> float:
    """The level at which power is told: that of Holm's first step, at which a pair is called different whatever the others come to."""
    return ALPHA / max(pairs, 1)


def _quality(name: str, seeds: tuple[int, ...], values: np.ndarray, parts: Crossed | None, bounds: Bounds) -> Quality:
    found = student(values) if parts is None else mean(parts)
    if bounds == SHARE:
        low, high = interval_of_share(found, None if parts is None else parts.examples.shape[-1])
    else:
        low, high = found.interval() if found.variance != 0 else (np.full((), np.nan),) * 2
    return Quality(name, seeds, tuple(map(float, values)), float(found.value), *cut((float(low), float(high)), bounds))


def _bounded(pair: Pair, bounds: Bounds) -> Pair:
    limits = of_difference(bounds)
    (low, high), (close_low, close_high) = (cut(ends, limits) for ends in ((pair.low, pair.high), (pair.close_low, pair.close_high)))
    return replace(pair, low=low, high=high, close_low=close_low, close_high=close_high)


def _pair(
    one: int, other: int, seeds: Sequence[tuple[int, ...]], data: Measured, parts: Sequence[Crossed] | None, smallest: float,
    bounds: Bounds, level: float,
) -> Pair:  # fmt: skip
    several = min(len(data.values[one]), len(data.values[other])) > 1
    scope: Scope = "methods" if several else "models" if parts is not None else "none"
    found = welch(data.values[one], data.values[other]) if parts is None else difference(parts[one], parts[other])
    low, high = found.interval()
    close_low, close_high = found.interval(1 - 2 * ALPHA)
    tests = _tests(one, other, seeds, data, parts)
    noise = _noise(data.values[one], data.values[other], None if parts is None else (parts[one], parts[other])) if several else None
    pair = Pair(
        one=one,
        other=other,
        scope=scope,
        difference=float(found.value),
        low=float(low),
        high=float(high),
        close_low=float(close_low),
        close_high=float(close_high),
        p=tests[SIGN_FLIP] if scope == "models" else float(found.p()),
        equivalence_p=float(found.equivalence_p(smallest)),
        effect=_effect(data.values[one], data.values[other], None if parts is None else parts[one].examples - parts[other].examples, found),
        power=float("nan")
        if noise is None
        else power_with(noise, smallest, min(len(data.values[one]), len(data.values[other])), alpha=level),
        seeds_needed=None if noise is None else seeds_needed(noise, smallest, wanted=POWER, alpha=level, most=MOST_SEEDS),
        tests=tests,
    )
    return pair if found.variance != 0 else _without_spread(pair, data, smallest, bounds)


def _without_spread(pair: Pair, data: Measured, smallest: float, bounds: Bounds) -> Pair:
    """A pair that differs by the same on every example and seed: what shares of right answers can still hide; else nothing is known."""
    nothing = float("nan")
    exact = {name: p for name, p in pair.tests.items() if name in (SIGN_FLIP, EXCHANGE)}  # the others divide by what varies
    bare = replace(pair, power=nothing, seeds_needed=None, tests=exact)
    if data.scores is None or bounds != SHARE:
        return replace(bare, low=nothing, high=nothing, close_low=nothing, close_high=nothing, p=nothing, equivalence_p=nothing)
    count, apart = len(data.examples), pair.difference
    far, close = reach(count), reach(count, 1 - 2 * ALPHA)
    p, alike = (1.0, unseen(count, smallest)) if apart == 0 else (pair.tests[SIGN_FLIP], 1.0)
    return replace(
        bare, low=apart - far, high=apart + far, close_low=apart - close, close_high=apart + close, p=p, equivalence_p=alike
    )  # fmt: skip


def _noise(one: np.ndarray, other: np.ndarray, parts: tuple[Crossed, Crossed] | None) -> Noise:
    if parts is not None:
        return noise_of(*parts)
    return Noise(float(one.var(ddof=1)), float(other.var(ddof=1)))


def _effect(one: np.ndarray, other: np.ndarray, apart: np.ndarray | None, found: Estimate) -> float:
    """Over seeds where both arms have several, else over examples; NaN where there is neither."""
    if min(len(one), len(other)) > 1:
        return float(hedges_g(one, other))
    if apart is None or not (spread := float(apart.std(ddof=1))):
        return float("nan")
    return float(found.value) / spread


def _tests(one: int, other: int, seeds: Sequence[tuple[int, ...]], data: Measured, parts: Sequence[Crossed] | None) -> dict[str, float]:
    """p-values of what else can be asked. Those over examples alone are about these very models."""
    first, second = data.values[one], data.values[other]
    tests = {}
    if min(len(first), len(second)) > 1:
        tests["Welch's t over seeds"] = float(welch(first, second).p())
        tests[EXCHANGE] = exchange(first, second)
        if seeds[one] == seeds[other]:
            tests["paired t over seeds"] = float(paired(first, second).p())
    if parts is not None and data.scores is not None:
        apart = parts[one].examples - parts[other].examples + (parts[one].mean - parts[other].mean)
        tests[SIGN_FLIP] = sign_flip(rounded(apart, np.maximum(parts[one].scale, parts[other].scale)))
        tests["hierarchical bootstrap"] = float(bootstrap_difference(data.scores[one], data.scores[other], weights=data.weights).p())
    return tests
