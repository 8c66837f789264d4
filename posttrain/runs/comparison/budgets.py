"""What arms had to spend, and what they spent of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from posttrain.runs.budget.amount import Budget, budget_of
from posttrain.runs.comparison.arms import Arm
from posttrain.runs.comparison.costs import EQUAL
from posttrain.runs.comparison.read import Run
from posttrain.runs.comparison.study import Study
from posttrain.runs.pipeline.shares import spent_by

Budgets = Sequence[tuple[Arm, Sequence[Budget | None]]]


def budgets_of(study: Study | None, arms: Sequence[Arm]) -> Budgets:
    """What each run of each arm had to spend: its own budget, as its configuration says; the study's where it says nothing."""
    return [(arm, [_budget(study, run) for run in arm.runs]) for arm in arms]


def _budget(study: Study | None, run: Run) -> Budget | None:
    if "budget" in run.config:
        return budget_of(run.config)
    return None if study is None or study.budget is None else Budget(study.budget["unit"], float(study.budget["amount"]))


def budget_note(budgets: Budgets) -> list[str]:
    """Whether arms had the same budget, each one's where not, and what was spent."""
    every = [budget for _, some in budgets for budget in some]
    if not any(every):
        return ["The study has no budget: arms cost what they cost."]
    if len(set(every)) == 1:
        asked = f"Budget of every arm: {every[0].amount:.6g} {every[0].unit}." if every[0] else ""
    else:
        listed = "; ".join(f"{arm.name} {_words(some)}" for arm, some in budgets)
        asked = f"Budgets are unequal, and so arms are not compared at equal cost: {listed}."
    shares = [share for _, some in _shares(budgets) for share in some]
    return [f"{asked} Spent: {min(shares):.2%} to {max(shares):.2%} of {'it' if len({*every} - {None}) == 1 else 'their own'}."]


def unequal(budgets: Budgets) -> str:
    """What a verdict must say where arms that had a budget were not compared at equal compute; empty where they were, within 2 %, or where
    none had one."""
    every = {budget for _, some in budgets for budget in some}
    if len(budgets) < 2 or not any(every):
        return ""
    if len(every) > 1:
        return f"Not at equal compute: {'; '.join(f'{arm.name} had {_words(some)}' for arm, some in budgets)}."
    means = {arm.name: fmean(shares) for arm, shares in _shares(budgets)}
    if min(means.values()) >= 1 - EQUAL and max(means.values()) <= (1 + EQUAL) * min(means.values()):
        return ""
    return f"Not at equal compute: {', '.join(f'{name} spent {100 * share:.3g} %' for name, share in means.items())} of the budget."


def _words(budgets: Sequence[Budget | None]) -> str:
    return " or ".join(dict.fromkeys("no budget" if budget is None else f"{budget.amount:.6g} {budget.unit}" for budget in budgets))


def _shares(budgets: Budgets) -> Iterator[tuple[Arm, list[float]]]:
    """What each run with a budget spent of it."""
    for arm, some in budgets:
        pairs = zip(arm.runs, some, strict=True)
        if found := [_amount(run, budget.unit) / budget.amount for run, budget in pairs if budget is not None]:
            yield arm, found


def _amount(run: Run, unit: str) -> float:
    """What a run spent, as it counted itself; else what its parts did, with what they start from."""
    counted = run.result.get("budget") or {}
    if counted.get("unit") == unit:
        return float(counted["spent"])
    return sum(spent_by(unit, part.result, part.config) for part in run.paid)
