"""What arms had to spend, and what they spent of it."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.runs.budget.amount import Budget, budget_of
from posttrain.runs.comparison.arms import Arm
from posttrain.runs.comparison.read import Run
from posttrain.runs.comparison.study import Study


def budget_note(study: Study, arms: Sequence[Arm]) -> list[str]:
    """Whether arms had the same budget, each one's where not, and what was spent."""
    each = [(arm, [_budget(study, run) for run in arm.runs]) for arm in arms]
    every = [budget for _, budgets in each for budget in budgets]
    if not any(every):
        return ["The study has no budget: arms cost what they cost."]
    if len(set(every)) == 1:
        asked = f"Budget of every arm: {every[0].amount:.6g} {every[0].unit}." if every[0] else ""
    else:
        listed = "; ".join(f"{arm.name} {_words(budgets)}" for arm, budgets in each)
        asked = f"Budgets are unequal, and so arms are not compared at equal cost: {listed}."
    return [f"{asked} {_spent(each)}"]


def _budget(study: Study, run: Run) -> Budget | None:
    """A run's own, as its configuration says; the study's where it says nothing."""
    if "budget" in run.config:
        return budget_of(run.config)
    return None if study.budget is None else Budget(study.budget["unit"], float(study.budget["amount"]))


def _words(budgets: Sequence[Budget | None]) -> str:
    return " or ".join(dict.fromkeys("none" if budget is None else f"{budget.amount:.6g} {budget.unit}" for budget in budgets))


def _spent(each: Sequence[tuple[Arm, Sequence[Budget | None]]]) -> str:
    limited = [(run, budget) for arm, budgets in each for run, budget in zip(arm.runs, budgets, strict=True) if budget is not None]
    shares = [float(run.result["budget"]["spent"]) / budget.amount for run, budget in limited if run.result.get("budget")]
    if len(shares) < len(limited):
        return "Not every run says what it spent of it."
    return f"Spent: {min(shares):.2%} to {max(shares):.2%} of {'it' if len({budget for _, budget in limited}) == 1 else 'their own'}."
