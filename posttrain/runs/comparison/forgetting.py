"""What training changed besides what it was for: every metric that was also measured before, against the model that it started from."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from posttrain.evaluation.scores import Scores
from posttrain.evaluation.statistics.crossed import crossed, mean
from posttrain.evaluation.statistics.estimate import Estimate
from posttrain.evaluation.statistics.permutation import holm
from posttrain.evaluation.statistics.scalars import paired
from posttrain.runs.comparison.analyse import ALPHA
from posttrain.runs.comparison.apart import apart, scores_at
from posttrain.runs.comparison.arms import Arm
from posttrain.runs.comparison.direction import lower_is_better
from posttrain.runs.comparison.metric import NO_QUALITY, only, other_data
from posttrain.runs.comparison.read import Run

BEFORE, NAN = "/before", float("nan")
MEASURED = re.compile(r"^(val|eval)/")


@dataclass(frozen=True)
class Change:
    """A metric of an arm's runs [S], before and after. lower: whether less of it is better. arm: its place.

    low, high: 95 % interval of after - before, over seeds and examples where the scores of both were kept, else over seeds. p: of no
    change; holm: the same, adjusted for all changes. NaN where there is nothing to test by.
    """

    metric: str
    arm: int
    before: tuple[float, ...]
    after: tuple[float, ...]
    lower: bool
    low: float = NAN
    high: float = NAN
    p: float = NAN
    holm: float = NAN

    @property
    def difference(self) -> float:
        """Mean of after - before."""
        return sum(after - before for before, after in zip(self.before, self.after, strict=True)) / len(self.after)

    @property
    def gain(self) -> float:
        """Mean change, positive where it got better."""
        return -self.difference if self.lower else self.difference

    @property
    def verdict(self) -> str:
        """better or worse where that is shown."""
        if not self.gain:
            return "the same"
        if math.isnan(self.holm):
            return "not tested"
        return "not shown to differ" if self.holm >= ALPHA else "better" if self.gain > 0 else "worse"


def changes_of(arms: Sequence[Arm]) -> list[Change]:
    """By metric, then by arm: those that all runs of an arm measured before and after."""
    found = [change for place, arm in enumerate(arms) for change in _of_arm(place, arm)]
    order = list(dict.fromkeys(change.metric for change in found))
    adjusted = holm(np.array([change.p for change in found]))
    tested = [replace(change, holm=float(p)) for change, p in zip(found, adjusted, strict=True)]
    return sorted(tested, key=lambda change: (order.index(change.metric), change.arm))


@dataclass(frozen=True)
class Measure:
    """A metric of one run, before and after. scores: of the same examples both times; None where they were not kept of both."""

    before: float
    after: float
    scores: tuple[Scores, Scores] | None = None


def _of_arm(place: int, arm: Arm) -> list[Change]:
    each = [_measures(run) for run in arm.runs]
    names = [name for name in each[0] if all(name in found for found in each)]
    return [_change(name, place, [found[name] for found in each]) for name in names]


def _change(metric: str, place: int, measures: Sequence[Measure]) -> Change:
    before, after = (tuple(getattr(found, side) for found in measures) for side in ("before", "after"))
    change = Change(metric, place, before, after, lower_is_better(metric))
    found = _estimate(change, measures)
    if found is None or not found.variance > 0:
        return change
    low, high = found.interval()
    return replace(change, low=float(low), high=float(high), p=float(found.p()))


def _estimate(change: Change, measures: Sequence[Measure]) -> Estimate | None:
    """Of after - before: over seeds and the same examples, else over seeds; None where there is one alone."""
    each = [None if found.scores is None else apart(*found.scores[::-1]) for found in measures]
    known = [found for found in each if found is not None]
    if len(known) == len(measures) and len({names for names, _ in known}) == 1:
        return mean(crossed(np.stack([values for _, values in known])))
    return paired(np.array(change.after), np.array(change.before)) if len(measures) > 1 else None


def _measures(run: Run) -> dict[str, Measure]:
    """By metric. A pipeline's beginning is that of its first policy; a loss of another method is another quantity."""
    first, last = run.beginning, run.parts[-1]
    alike = first.result["method"] == last.result["method"]
    found = {}
    for name, before in first.metrics.items():
        bare = name.removesuffix(BEFORE)
        if bare == name or not MEASURED.match(bare) or NO_QUALITY.search(bare) or bare not in run.metrics:
            continue
        if (alike or bare.startswith("eval/")) and (measure := _measure(run, bare, before)) is not None:
            found[bare] = measure
    return found


def _measure(run: Run, metric: str, before: float) -> Measure | None:
    """On the examples that were measured both times, if these are all of either time; None where it was on other data."""
    first, after = run.beginning, run.metrics[metric]
    scores, others = scores_at(first.folder, 0, metric, before), run.scores.get(metric)
    if scores is None or others is None:
        return None if other_data(run, first, metric) else Measure(before, after)
    mine, theirs = set(scores.examples), set(others.examples)
    if mine == theirs:
        return Measure(before, after, (scores, others))
    shared = mine & theirs
    if len(shared) < min(len(mine), len(theirs)) or not shared:
        return None
    kept = only(scores, shared), only(others, shared)
    return Measure(kept[0].mean, kept[1].mean, kept)
