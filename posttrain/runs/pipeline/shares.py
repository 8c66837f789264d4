"""A stage's part of the pipeline's budget, from what the stages before it have really spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.errors import ConfigError, Problem


def unit_of(budget: Mapping[str, Any] | None) -> str | None:
    """What a budget is counted in; None where there is none."""
    return next((unit for unit, amount in (budget or {}).items() if amount is not None), None)


def part_of(budget: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]], number: int, spent: float) -> dict[str, Any] | None:
    """The budget of stage `number` (from 0) of `nodes`: its share, or an even part of what is left; None where the pipeline has none.

    spent: by the stages before it, also by those that were reused.

    Raises:
        ConfigError: nothing is left.
    """
    unit = unit_of(budget)
    if unit is None:
        return None
    amount, node = float(budget[unit]), nodes[number]
    shares = [later["share"] for later in nodes[number + 1 :]]
    reserved = amount * sum(share for share in shares if share is not None)
    left = (amount - spent - reserved) / (1 + shares.count(None))
    part = left if node["share"] is None else node["share"] * amount
    if part <= 0:
        message = f"of {amount:.4g} the stages before it have spent {spent:.4g}, and {reserved:.4g} are kept for later ones"
        raise ConfigError(Problem(f"stage {node['name']}: budget.{unit}", message, "raise the budget, or give the stages shares"))
    return {name: part if name == unit else None for name in budget}


def spent_by(unit: str, result: Mapping[str, Any], config: Mapping[str, Any]) -> float:
    """What a finished stage is charged: what its own budget counted, else what its result says."""
    counted = result.get("budget")
    if isinstance(counted, Mapping) and counted.get("unit") == unit:
        return float(counted["spent"])
    devices = config["hardware"]["nodes"] * config["hardware"]["devices"]
    return float(result["train_seconds"]) * devices if unit == "gpu_seconds" else float(result[unit])


def bounds_told(config: Mapping[str, Any]) -> list[str]:
    """A line for each stage of a pipeline with a budget that max_steps may end before its part of that is spent."""
    bounds = [(node["name"], node["config"]["max_steps"]) for node in config["stages"]] if unit_of(config["budget"]) else []
    return [
        f"stage {name}: max_steps={steps} ends it there, also where some of its part of the budget is left"
        for name, steps in bounds
        if steps is not None
    ]
