"""What a run's budget is charged with before it begins: the cost of the run that it starts from, as that was, or else as it is planned."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.errors import ConfigError
from posttrain.runs import entering
from posttrain.runs.budget.amount import WORDS, Budget, budget_of
from posttrain.runs.planning.estimate import Estimate
from posttrain.runs.planning.workload import Workload

Config = dict[str, Any]
Planned = tuple[Workload, Estimate]


@dataclass(frozen=True)
class Charge:
    """amount: in the budget's unit; None where it cannot be known before. made: whether the run is there, so that it is exact."""

    budget: Budget
    amount: float | None
    made: bool

    @property
    def words(self) -> str:
        """For people."""
        if self.amount is None:
            return "the run that is made first; what it costs is not known before"
        about = "" if self.made else "about "
        return f"{about}{self.amount:.4g} {WORDS[self.budget.unit]} for the run that is made first"


def charge_of(config: Config, plan: Callable[[Config], Planned], *, allow_targets: Collection[str] = ()) -> Charge | None:
    """None without a budget or without a run that is made first. plan: of a run's config, its work and its estimate.

    Raises ConfigError where that run is wrong, or leaves nothing of the budget.
    """
    budget = budget_of(config)
    if budget is None or not config["entering"]:
        return None
    made = _is_made(config)
    if made:
        charge = Charge(budget, entering.spent(config, budget.unit), made)
    else:
        first = entering.config_of(config["entering"], config, allow_targets=allow_targets)
        charge = Charge(budget, _planned(budget.unit, *plan(first)), made)
    if charge.amount is not None and charge.amount >= budget.amount:
        raise ConfigError(entering.nothing_left(charge.amount, budget))
    return charge


def _is_made(config: Mapping[str, Any]) -> bool:
    if config["output_dir"] is None or config["resume"] == "never":
        return False
    try:
        return bool(entering.result_of(config)["status"] == "finished")
    except ConfigError:
        return False


def _planned(unit: str, work: Workload, found: Estimate) -> float | None:
    """In a budget's unit; None where the number of steps, or the speed of the devices, is unknown."""
    spent = found.duration
    seconds = None if spent.seconds is None else spent.seconds * spent.devices
    step = {"tokens": work.tokens, "flops": spent.flops, "gpu_seconds": seconds}[unit]
    return None if step is None or work.steps is None else step * work.steps
