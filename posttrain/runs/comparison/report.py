"""A comparison as rows of tables and as JSON: what the terminal, the page and compare.json show."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain.runs.comparison.analyse import ALPHA, Analysis, Pair, level_of
from posttrain.runs.comparison.arms import Arm, mixed
from posttrain.runs.comparison.bounds import NONE, SHARE, bounds_note
from posttrain.runs.comparison.costs import EQUAL, Cost, Curve, pareto
from posttrain.runs.comparison.drift import Drift, told
from posttrain.runs.comparison.forgetting import Change
from posttrain.runs.comparison.measured_as import settings_note
from posttrain.runs.comparison.read import Run
from posttrain.runs.comparison.study import Study
from posttrain.runs.comparison.verdict import between, kind, number, p_value
from posttrain.runs.plain_json import finite

QUALITY = ("arm", "seeds", "mean", "95 % interval", "difference", "its 95 % interval", "p (Holm)", "effect", "verdict")
COSTS = ("arm", "FLOPs", "tokens trained", "tokens generated", "Pareto front")
TIMES = ("arm", "hours", "device-hours", "peak memory")  # of the machines: another run of the same study gives others


@dataclass(frozen=True)
class Report:
    """Everything a comparison says. cautions: what may make the verdict wrong. notes: what a reader must know of how it was made.
    study: None where runs were named one by one."""

    analysis: Analysis
    arms: Sequence[Arm]
    costs: Sequence[Cost]
    curves: Sequence[Sequence[Curve]]
    verdicts: Sequence[str]
    cautions: Sequence[str]
    notes: Sequence[str]
    drifts: Sequence[Sequence[Drift]]
    changes: Sequence[Change]
    study: Study | None = None

    @property
    def front(self) -> list[int]:
        """Places of the arms that no other one beats in quality and operations together, the cheapest first."""
        analysis = self.analysis
        return pareto([cost.flops for cost in self.costs], [arm.mean for arm in analysis.arms], lower=analysis.lower)

    @property
    def near_front(self) -> list[int]:
        """Places of the other arms that are not shown to be worse than one on the front, and cost no more, as far as a budget is kept."""
        front = self.front
        beside = [place for place in range(len(self.arms)) if place not in front and any(self._matches(place, best) for best in front)]
        return sorted(beside, key=lambda place: self.costs[place].flops)

    def _matches(self, place: int, best: int) -> bool:
        pair = self.analysis.between(place, best)
        unlike = pair is not None and kind(pair) == "different"
        return not unlike and self.costs[place].flops <= (1 + EQUAL) * self.costs[best].flops

    @property
    def home(self) -> Path:
        """The folder of the study, or the one that all runs lie in: runs are named by where they are in it."""
        folders = [run.folder for arm in self.arms for run in arm.runs]
        return Path(os.path.commonpath([folder.parent for folder in folders])) if self.study is None else self.study.folder

    @property
    def over_optimised(self) -> list[str]:
        """Runs whose reward went on rising while what is measured elsewhere fell."""
        return told(self.arms, self.drifts, self.analysis.smallest)

    @property
    def warnings(self) -> list[str]:
        """All that stands beside the verdict."""
        return [*self.cautions, *self.over_optimised]


def quality_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    """A row an arm, the best first."""
    return [_quality_row(analysis, place) for place in analysis.order]


def _quality_row(analysis: Analysis, place: int) -> tuple[str, ...]:
    arm, pair = analysis.arms[place], analysis.against(place)
    row = (arm.name, str(len(arm.seeds)), number(arm.mean), "-" if math.isnan(arm.low) else between(arm.low, arm.high))
    if pair is None:
        return (*row, "baseline" if analysis.is_baseline else "best", "", "", "", "")
    apart = "-" if math.isnan(pair.low) else between(pair.low, pair.high)
    return (*row, f"{pair.difference + 0.0:+.4g}", apart, p_value(pair.holm), effect_of(pair), kind(pair))


def cost_rows(report: Report) -> list[tuple[str, ...]]:
    """A row an arm: means over its runs."""
    words = dict.fromkeys(report.near_front, "not shown to be off it") | dict.fromkeys(report.front, "on it")
    return [_cost_row(report.arms[place].name, report.costs[place], words.get(place, "")) for place in report.analysis.order]


def _cost_row(name: str, cost: Cost, front: str) -> tuple[str, ...]:
    return name, f"{cost.flops:.3g}", f"{cost.tokens:,.0f}", f"{cost.generated:,.0f}", front


def time_rows(report: Report) -> list[tuple[str, ...]]:
    """A row an arm: means over its runs, of memory the most."""
    each = [(report.arms[place].name, report.costs[place]) for place in report.analysis.order]
    return [(name, f"{cost.hours:.3g}", f"{cost.device_hours:.3g}", f"{cost.peak_bytes / 2**30:.2f} GiB") for name, cost in each]


def folder_of(report: Report, run: Run) -> str:
    """Where a run lies, as seen from `home`."""
    return Path(os.path.relpath(run.folder, report.home)).as_posix()


def effect_of(pair: Pair) -> str:
    """In words where seeds do not differ at all, so that nothing can be a number of their standard deviations."""
    return "no spread" if math.isinf(pair.effect) else number(pair.effect)


def notes_of(analysis: Analysis, arms: Sequence[Arm]) -> list[str]:
    """How the numbers were made, and what they cannot say."""
    alone = "" if analysis.most is None else f", of up to {analysis.most} that some were measured on; means are of these alone"
    about = f"{analysis.examples} examples, the same for all runs{alone}" if analysis.examples else (
        "final values of the runs alone: not all of them kept the scores of single examples, so intervals are over seeds, and whether "
        "they were measured on the same examples is known only as far as digests of the data tell"
    )  # fmt: skip
    count = len(analysis.pairs)
    tested = (
        f"{count} comparisons with the baseline" if analysis.is_baseline else f"{count} pairs, since the same numbers say which is best"
    )
    adjusted = (
        f"p-values are adjusted by Holm for {tested}; intervals of differences are not. Numbers of seeds are for a test at "
        f"{ALPHA:g}/{count} = {level_of(count):.3g}, by which a difference is seen whatever the other pairs come to."
    ) if count > 1 else ""  # fmt: skip
    bounded = [] if analysis.bounds == NONE else [bounds_note(analysis.bounds)]
    notes = [
        " ".join([f"{analysis.metric}: {about}.", *bounded]),
        f"Intervals cover seeds and examples where both are known. {adjusted}".strip(),
        f"Smallest difference that matters: {number(analysis.smallest)}. Effect: Hedges' g over seeds, else over examples.",
    ]
    if any(len(arm.runs) == 1 for arm in arms):
        notes.append("An arm with one seed has an interval over examples only, about this one model.")
    if analysis.examples and any(len(arm.runs) == 2 for arm in arms):
        notes.append(
            "With two seeds an arm, how much seeds vary is known from a single difference. Intervals allow for that and hold the truth as "
            "often as they should, but their width is much luck; where seeds decide, a third one makes them half as wide on average."
        )
        if analysis.bounds == SHARE:
            notes.append(
                "Two good seeds say little of how bad a third one may be: near 0 or 1 the interval of their mean may be far longer than "
                "that of a difference, in which the skewness of two arms cancels."
            )
    notes += [*mixed(arms), *_entered(arms), *settings_note([run for arm in arms for run in arm.runs], analysis.metric)]
    return notes


def _entered(arms: Sequence[Arm]) -> Iterator[str]:
    """Which arms' costs hold those of a run that was made for them."""
    for arm in arms:
        if first := [part.entered for run in arm.runs for part in run.parts if part.entered is not None]:
            mean = sum(float(run.result["flops"]) for run in first) / len(arm.runs)
            yield f"Costs of {arm.name} hold the run that it starts from (entering): {mean:.3g} FLOPs."


def as_json(report: Report) -> dict[str, Any]:
    """Everything, numbers that are not known as null. What another run of the same study would find otherwise is under `measured` alone."""
    analysis = report.analysis
    arms = [
        {
            **asdict(quality), "differs": dict(arm.differs),
            "cost": {"flops": cost.flops, "tokens": cost.tokens, "generated": cost.generated},
            "runs": [{"folder": folder_of(report, run), "seed": run.seed, "value": run.metrics[analysis.metric]} for run in arm.runs],
        }
        for quality, arm, cost in zip(analysis.arms, report.arms, report.costs, strict=True)
    ]  # fmt: skip
    times = [
        {"name": arm.name, "hours": cost.hours, "device_hours": cost.device_hours, "peak_bytes": cost.peak_bytes}
        for arm, cost in zip(report.arms, report.costs, strict=True)
    ]
    pairs = [
        {**asdict(pair), "one": analysis.arms[pair.one].name, "other": analysis.arms[pair.other].name, "verdict": kind(pair)}
        for pair in analysis.pairs
    ]
    found = {
        "verdict": list(report.verdicts), "metric": analysis.metric, "better": "lower" if analysis.lower else "higher",
        "smallest": analysis.smallest, "examples": analysis.examples, "examples_at_most": analysis.most,
        "reference": analysis.arms[analysis.reference].name, "power_level": level_of(len(analysis.pairs)),
        "is_baseline": analysis.is_baseline, "bounds": list(analysis.bounds), "arms": arms, "pairs": pairs, "notes": list(report.notes),
        "pareto": [analysis.arms[place].name for place in report.front],
        "pareto_not_excluded": [analysis.arms[place].name for place in report.near_front], "over_optimised": report.over_optimised,
        "cautions": list(report.cautions),
        "changes": [{**asdict(change), "arm": analysis.arms[change.arm].name, "gain": change.gain, "verdict": change.verdict}
            for change in report.changes],
        "study": None if report.study is None else {"name": report.study.name, "budget": report.study.budget},
        "measured": {"folder": str(report.home), "arms": times},
    }  # fmt: skip
    plain: dict[str, Any] = finite(found)
    return plain
