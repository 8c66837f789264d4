"""From judgements to win rates, ratings, a ranking, agreement and the bias for what stands first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from posttrain.evaluation.human.agreement import Agreement, agreement
from posttrain.evaluation.human.choice import strengths
from posttrain.evaluation.human.returned import Judgement
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

    p, rating_p: of no difference, by flipping signs of items; holm, rating_holm: adjusted for all pairs.
    """

    one: str
    other: str
    win_rate: Value
    rating: Value
    p: float
    rating_p: float
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
    fit = strengths(np.array([one.order for one in found]), chosen, _items(found))
    made = [
        Standing(
            name, share(wins[:, k]), mean(ratings[:, k]),
            Value(float(fit.value[k]), float(fit.value[k] - Z * fit.se[k]), float(fit.value[k] + Z * fit.se[k])),
            float(fit.preferred[k]), int((chosen == k).sum()), int((chosen == len(arms)).sum()),
        )
        for k, name in enumerate(arms)
    ]  # fmt: skip
    return tuple(sorted(made, key=lambda one: -one.strength.value))


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


def share(values: Array) -> Value:
    """Mean of shares [N] in 0..1 with Wilson's interval (J. Am. Stat. Assoc. 22 (1927) 209-212), at as many trials as their variance is
    worth: several raters of an item are not several items, and a tie is no full trial."""
    p, count = float(values.mean()), len(values)
    spread = float(values.var(ddof=1)) if count > 1 else 0.0
    trials = p * (1 - p) / (spread / count) if spread else float(count)
    centre, reach = (p + Z**2 / (2 * trials)), Z * np.sqrt(p * (1 - p) / trials + Z**2 / (4 * trials**2))
    below = 1 + Z**2 / trials
    return Value(p, max(0.0, float((centre - reach) / below)), min(1.0, float((centre + reach) / below)))


def mean(values: Array) -> Value:
    """Mean of [N] with Student's interval; none where nothing varies."""
    found = student(values)
    low, high = found.interval()
    known = float(found.variance) > 0
    return Value(float(found.value), float(low) if known else NAN, float(high) if known else NAN)


def duels(found: Sequence[Judgement], arms: Sequence[str]) -> tuple[Duel, ...]:
    """Every pair of arms, the one with more wins first."""
    credit, ratings = _credit(found, len(arms)), np.array([one.ratings for one in found], float)
    made = []
    for first, second in combinations(range(len(arms)), 2):
        i, j = (first, second) if credit[:, first].sum() >= credit[:, second].sum() else (second, first)
        about = [row for row, one in enumerate(found) if one.preferred in (None, i, j)]
        apart = _by_item(found, ratings[:, i] - ratings[:, j])
        some = [found[row] for row in about]
        rate = share(_by_item(some, 0.5 + (credit[about, i] - credit[about, j]) / 2)) if some else Value(NAN, NAN, NAN)
        p = sign_flip(_by_item(found, credit[:, i] - credit[:, j]))
        made.append(Duel(arms[i], arms[j], rate, mean(apart), p, sign_flip(apart)))
    adjusted, rated = (holm(np.array([getattr(one, name) for one in made])) for name in ("p", "rating_p"))
    return tuple(
        Duel(one.one, one.other, one.win_rate, one.rating, one.p, one.rating_p, float(adjusted[k]), float(rated[k]))
        for k, one in enumerate(made)
    )


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
