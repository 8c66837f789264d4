"""From judgements to win rates, ratings, a ranking, agreement and the bias for what stands first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy import stats

from posttrain.evaluation.human.agreement import Agreement, agreement
from posttrain.evaluation.human.choice import strengths
from posttrain.evaluation.human.returned import Judgement
from posttrain.evaluation.human.seeds import over_runs, several
from posttrain.evaluation.statistics.estimate import Estimate
from posttrain.evaluation.statistics.permutation import holm, sign_flip
from posttrain.evaluation.statistics.scalars import student

Array = np.ndarray
NAN = float("nan")
Z = float(stats.norm.ppf(0.975))


@dataclass(frozen=True)
class Value:
    """A value with its 95 % interval; NaN where none is known."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Standing:
    """An arm. win_rate: how often it is preferred, a tie shared by all. strength: Bradley-Terry, as log-odds against the average arm."""

    arm: str
    win_rate: Value
    rating: Value
    strength: Value
    expected: float
    wins: int
    ties: int


@dataclass(frozen=True)
class Duel:
    """Two arms. win_rate: of `one` where one of them is preferred or none, ties half. rating: difference of the mean ratings.

    p, rating_p: of no difference: over items and runs where both arms have several runs, else of these very models, by flipping signs of
    items. holm, rating_holm: adjusted for all pairs. methods: whether it is about methods, and not these models alone.
    """

    one: str
    other: str
    win_rate: Value
    rating: Value
    p: float
    rating_p: float
    methods: bool = False
    holm: float = NAN
    rating_holm: float = NAN


@dataclass(frozen=True)
class Position:
    """counts: how often each place was preferred, ties left out. first: share of the first. expected: without bias. p: binomial test."""

    counts: tuple[int, ...]
    first: Value
    expected: float
    p: float


@dataclass(frozen=True)
class Stratum:
    """A part of the items, and the arms in it."""

    name: str
    items: int
    standings: tuple[Standing, ...]


@dataclass(frozen=True)
class Summary:
    """by: what strata are made of. standings: the best first. agreement: None with one rater."""

    items: int
    raters: tuple[str, ...]
    by: str
    standings: tuple[Standing, ...]
    duels: tuple[Duel, ...]
    position: Position
    agreement: Agreement | None
    strata: tuple[Stratum, ...]


def summarise(found: Sequence[Judgement], arms: Sequence[str], by: str) -> Summary:
    """Everything that is said of some judgements."""
    raters, items = tuple(sorted({one.rater for one in found})), sorted({one.item for one in found})
    names = sorted({one.stratum for one in found})
    parts = [(name, [one for one in found if one.stratum == name]) for name in names] if len(names) > 1 else []
    return Summary(
        len(items), raters, by, standings(found, arms), duels(found, arms), position(found, len(arms)),
        agreement(_labels(found, items, raters, len(arms))) if len(raters) > 1 else None,
        tuple(Stratum(name, len({one.item for one in part}), standings(part, arms)) for name, part in parts),
    )  # fmt: skip


def _labels(found: Sequence[Judgement], items: Sequence[str], raters: Sequence[str], tie: int) -> Array:
    """[N, R]: what each rater prefers."""
    said = {(one.item, one.rater): tie if one.preferred is None else one.preferred for one in found}
    return np.array([[said[item, rater] for rater in raters] for item in items])


def standings(found: Sequence[Judgement], arms: Sequence[str]) -> tuple[Standing, ...]:
    """The arms, the most preferred first."""
    wins, ratings = _by_item(found, _credit(found, len(arms))), _by_item(found, np.array([one.ratings for one in found], float))
    chosen = np.array([len(arms) if one.preferred is None else one.preferred for one in found])
    runs = _runs(found)
    fit = strengths(np.array([one.order for one in found]), chosen, _items(found))
    made = [
        Standing(
            name, share(wins[:, k], over_runs(wins[:, k], runs)), mean(over_runs(ratings[:, k], runs)),
            _strength(float(fit.value[k]), float(fit.se[k]), wins[:, k], runs),
            float(fit.preferred[k]), int((chosen == k).sum()), int((chosen == len(arms)).sum()),
        )
        for k, name in enumerate(arms)
    ]  # fmt: skip
    return tuple(sorted(made, key=lambda one: -one.strength.value))


def _strength(value: float, se: float, wins: Array, runs: Array) -> Value:
    """With Bradley and Terry's interval over items, as much wider as runs make that of the wins."""
    alone, found = student(wins), over_runs(wins, runs)
    wider = _reach(found) / _reach(alone) if float(alone.variance) > 0 else 1.0
    return Value(value, value - Z * max(1.0, wider) * se, value + Z * max(1.0, wider) * se)


def _reach(found: Estimate) -> float:
    low, high = found.interval()
    return float(high - low)


def _runs(found: Sequence[Judgement]) -> Array:
    """[N, K]: which run of each arm answered each item; [N, 0] where that is not known."""
    by = {one.item: one.runs for one in found}
    return np.array([by[item] for item in sorted(by)])


def _items(found: Sequence[Judgement]) -> Array:
    return np.unique([one.item for one in found], return_inverse=True)[1]


def _credit(found: Sequence[Judgement], arms: int) -> Array:
    """[J, K]: 1 for what is preferred, a tie shared."""
    out = np.full((len(found), arms), 1 / arms)
    for row, one in enumerate(found):
        if one.preferred is not None:
            out[row] = np.eye(arms)[one.preferred]
    return out


def _by_item(found: Sequence[Judgement], values: Array) -> Array:
    """[N, ...]: means over the raters of each item."""
    place = _items(found)
    sums = np.zeros((int(place.max()) + 1, *values.shape[1:]))
    np.add.at(sums, place, values)
    counts = np.bincount(place)
    return np.asarray(sums / counts.reshape(-1, *[1] * (values.ndim - 1)))


def share(values: Array, found: Estimate | None = None) -> Value:
    """Mean of shares [N] in 0..1 with Wilson's interval (J. Am. Stat. Assoc. 22 (1927) 209-212), at as many trials as their variance is
    worth: several raters of an item are not several items, and a tie is no full trial. found: their mean where runs have a say too."""
    p, count = float(values.mean()), len(values)
    spread = student(values).variance if found is None else found.variance
    far = Z if found is None else max(Z, float(found.quantile(0.05))) if np.ndim(found.share) or found.share != 1 else Z
    trials = p * (1 - p) / float(spread) if count > 1 and spread > 0 else float(count)
    centre, reach = (p + far**2 / (2 * trials)), far * np.sqrt(p * (1 - p) / trials + far**2 / (4 * trials**2))
    below = 1 + far**2 / trials
    return Value(p, max(0.0, float((centre - reach) / below)), min(1.0, float((centre + reach) / below)))


def mean(found: Estimate) -> Value:
    """A mean with its interval; none where nothing varies."""
    low, high = found.interval()
    known = float(found.variance) > 0
    return Value(float(found.value), float(low) if known else NAN, float(high) if known else NAN)


def duels(found: Sequence[Judgement], arms: Sequence[str]) -> tuple[Duel, ...]:
    """Every pair of arms, the one with more wins first."""
    credit, ratings = _credit(found, len(arms)), np.array([one.ratings for one in found], float)
    runs = _runs(found)
    made = []
    for first, second in combinations(range(len(arms)), 2):
        i, j = (first, second) if credit[:, first].sum() >= credit[:, second].sum() else (second, first)
        about = [row for row, one in enumerate(found) if one.preferred in (None, i, j)]
        pair = runs[:, [i, j]] if runs.size else runs
        apart, preferred = (_by_item(found, values[:, i] - values[:, j]) for values in (ratings, credit))
        some = [found[row] for row in about]
        rate = _rate(some, 0.5 + (credit[about, i] - credit[about, j]) / 2, (i, j)) if some else Value(NAN, NAN, NAN)
        p, rating_p = (_p(values, pair) for values in (preferred, apart))
        made.append(Duel(arms[i], arms[j], rate, mean(over_runs(apart, pair)), p, rating_p, several(pair)))
    adjusted, rated = (holm(np.array([getattr(one, name) for one in made])) for name in ("p", "rating_p"))
    return tuple(replace(one, holm=float(adjusted[k]), rating_holm=float(rated[k])) for k, one in enumerate(made))


def _rate(found: Sequence[Judgement], values: Array, pair: tuple[int, int]) -> Value:
    """A win rate from judgements of two arms."""
    by_item, runs = _by_item(found, values), _runs(found)
    return share(by_item, over_runs(by_item, runs[:, list(pair)] if runs.size else runs))


def _p(values: Array, runs: Array) -> float:
    return float(over_runs(values, runs).p()) if several(runs) else sign_flip(values)


def position(found: Sequence[Judgement], arms: int) -> Position:
    """Whether what stands first is preferred. Arms stand at each place equally often, so that without a bias each has 1 / K."""
    places = [one.order.index(one.preferred) for one in found if one.preferred is not None]
    counts = tuple(int(some) for some in np.bincount(places, minlength=arms)) if places else (0,) * arms
    total = sum(counts)
    if not total:
        return Position(counts, Value(NAN, NAN, NAN), 1 / arms, NAN)
    test = stats.binomtest(counts[0], total, 1 / arms)
    around = test.proportion_ci(method="wilson")
    return Position(counts, Value(counts[0] / total, float(around.low), float(around.high)), 1 / arms, float(test.pvalue))
