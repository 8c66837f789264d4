"""What training changed besides what it was for: every metric that was also measured before, against the model that it started from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.runs.comparison.arms import Arm
from posttrain.runs.comparison.direction import lower_is_better
from posttrain.runs.comparison.metric import NO_QUALITY
from posttrain.runs.comparison.read import Run

BEFORE = "/before"
MEASURED = re.compile(r"^(val|eval)/")


@dataclass(frozen=True)
class Change:
    """A metric of an arm's runs [S], before and after. lower: whether less of it is better. arm: its place."""

    metric: str
    arm: int
    before: tuple[float, ...]
    after: tuple[float, ...]
    lower: bool

    @property
    def gain(self) -> float:
        """Mean change, positive where it got better."""
        apart = sum(after - before for before, after in zip(self.before, self.after, strict=True)) / len(self.after)
        return -apart if self.lower else apart


def changes_of(arms: Sequence[Arm]) -> list[Change]:
    """By metric, then by arm: those that all runs of an arm measured before and after."""
    found = [change for place, arm in enumerate(arms) for change in _of_arm(place, arm)]
    order = list(dict.fromkeys(change.metric for change in found))
    return sorted(found, key=lambda change: (order.index(change.metric), change.arm))


def _of_arm(place: int, arm: Arm) -> list[Change]:
    each = [_pairs(run) for run in arm.runs]
    names = [name for name in each[0] if all(name in pairs for pairs in each)]
    return [
        Change(name, place, tuple(pairs[name][0] for pairs in each), tuple(pairs[name][1] for pairs in each), lower_is_better(name))
        for name in names
    ]


def _pairs(run: Run) -> dict[str, tuple[float, float]]:
    """Before and after by metric. A pipeline's beginning is its first stage's; a loss of another method is another quantity."""
    first, last = run.parts[0], run.parts[-1]
    alike = first.result["method"] == last.result["method"]
    found = {}
    for name, before in first.metrics.items():
        bare = name.removesuffix(BEFORE)
        if bare == name or not MEASURED.match(bare) or NO_QUALITY.search(bare) or bare not in run.metrics:
            continue
        if alike or bare.startswith("eval/"):
            found[bare] = (before, run.metrics[bare])
    return found
