"""What a run may spend, read from its configuration without importing anything heavy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from posttrain.errors import Problem

Unit = Literal["flops", "tokens", "gpu_seconds"]
UNITS: tuple[Unit, ...] = get_args(Unit)
LITTLE: dict[Unit, float] = {"flops": 1e11, "tokens": 1e4}  # less than a few steps of the smallest models
WORDS: dict[Unit, str] = {"flops": "FLOPs", "tokens": "tokens", "gpu_seconds": "device seconds"}


@dataclass(frozen=True)
class Budget:
    """amount: of floating-point operations, of tokens trained on, or of seconds in training times devices."""

    unit: Unit
    amount: float

    @property
    def key(self) -> str:
        """Its place in the configuration."""
        return f"budget.{self.unit}"

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.amount:.4g} {WORDS[self.unit]}"


def budget_of(config: Mapping[str, Any]) -> Budget | None:
    """The budget of a checked configuration; None without one."""
    given = config.get("budget") or {}
    return next((Budget(unit, float(given[unit])) for unit in UNITS if given.get(unit) is not None), None)


def is_known_before(config: Mapping[str, Any]) -> bool:
    """Whether the run's steps, and so what they spend, are known before training: neither answers are sampled nor seconds counted."""
    budget = budget_of(config)
    return budget is not None and budget.unit != "gpu_seconds" and config["rollout"] is None


UNBOUNDED = 50_000  # steps of a run that a budget ends: more than one will do


def length_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """`max_steps` and `epochs` for the run's step plan: a budget ends it before any number of epochs does."""
    steps, epochs = config["max_steps"], config["epochs"]
    if budget_of(config) is None or steps is not None:
        return {"max_steps": steps, "epochs": epochs}
    if is_known_before(config):
        return {"max_steps": None, "epochs": 1}  # until it is known how many steps the budget buys
    return {"max_steps": UNBOUNDED, "epochs": None}


def budget_is_one(config: Mapping[str, Any]) -> Iterator[Problem]:
    """At most one unit."""
    named = [unit for unit in UNITS if (config["budget"] or {}).get(unit) is not None]
    if len(named) > 1:
        message = f"{' and '.join(named)} are set, and a run stops at one amount"
        yield Problem("budget", message, f"leave all but budget.{named[0]} null")


def schedule_fits_budget(config: Mapping[str, Any]) -> Iterator[Problem]:
    """A schedule that is to end with a budget whose steps are not known before cannot count in steps."""
    if budget_of(config) is None or is_known_before(config) or config["max_steps"] is not None:
        return
    for key in ("warmup", "decay"):
        length = config["scheduler"].get(key)
        if isinstance(length, int | float) and length >= 1:
            message = f"is {length} steps, and how many steps the budget buys is not known before"
            yield Problem(f"scheduler.{key}", message, "give a fraction of the run, such as 0.05, or max_steps")


def overspent(budget: Budget, step: int, *, by: str) -> Problem:
    """What is wrong with a budget that a run has more than spent before it goes on. by: how that is known."""
    hint = f"raise it to go on, or resume=never to begin anew with {budget.key}"
    return Problem(budget.key, f"the run has come to step {step} already, and {by}, more than {budget.amount:.6g}", hint)


def is_little(config: Mapping[str, Any]) -> bool:
    """Whether a run's budget is so little that it may be less than one step: worth a slow look beside other mistakes."""
    budget = config.get("budget") or {}
    return any(budget.get(unit) is not None and budget[unit] < amount for unit, amount in LITTLE.items())


def too_small(budget: Budget, first: float) -> Problem:
    """What is wrong with a budget that the first step would overspend."""
    return Problem(
        budget.key, f"{budget.amount:.6g} is less than one optimizer step spends ({first:.6g})", "raise it, or lower global_batch"
    )
