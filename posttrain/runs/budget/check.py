"""Budgets that would not pay for the first step of a run, found before anything is trained."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.runs.budget.amount import is_known_before
from posttrain.runs.pipeline.shares import part_of

Config = Mapping[str, Any]


def overspent_at_once(arms: Mapping[str, Config], allow_targets: Collection[str] = ()) -> Iterator[Problem]:
    """Of each arm's configuration: a budget smaller than one step, where data that is here tells what a step costs.

    Answers that a run samples, and what a pipeline's stages leave to each other, are not known before: of a pipeline this is its first
    stage's part.
    """
    from posttrain.runs.commands.plan import is_here

    for name, config in arms.items():
        stages = config.get("stages") or []
        where = f"study.arms.{name}: stage {stages[0]['name']}" if stages else f"study.arms.{name}"
        try:
            run = {**stages[0]["config"], "budget": part_of(config["budget"], stages, 0, 0.0)} if stages else config
            if is_known_before(run) and is_here(dict(run)):
                _bought(run, allow_targets)
        except ConfigError as error:
            yield from (Problem(f"{where}: {p.where}", p.message, p.hint) for p in error.problems)


def _bought(config: Config, allow_targets: Collection[str]) -> None:
    """Raises ConfigError for a budget that is smaller than the run's first step."""
    from posttrain.runs.budget.plan import bought
    from posttrain.runs.inputs import load_inputs
    from posttrain.runs.ranks import Ranks
    from posttrain.runs.train import untrained

    one = {**config, "max_steps": 1}
    bought(one, load_inputs(one)[1], Ranks(), untrained(one, allow_targets=allow_targets))
