"""Finds every mistake in a composed pipeline: its own keys, then each stage's under its name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from posttrain.errors import Problem
from posttrain.runs.pipeline.compose import prefixed
from posttrain.runs.pipeline.inputs import entered, placeholders
from posttrain.runs.pipeline.lines import OWN
from posttrain.runs.pipeline.opponents import without_opponent
from posttrain.runs.pipeline.shares import unit_of
from posttrain.runs.rules import Rule
from posttrain.runs.validate import validate


def pipeline_problems(config: dict[str, Any], *, allow_targets: Collection[str], rules: Sequence[Rule]) -> list[Problem]:
    """The problems of a pipeline and of all its stages. Rules about keys of runs hold for each stage."""
    from posttrain.runs.check import check

    own = [problem for problem in validate({**config, "stages": None}, allow=allow_targets) if problem.where.split(".")[0] in OWN]
    if not own:
        own = [problem for rule in rules if set(rule.reads) <= set(OWN) for problem in rule.problems(config, allow_targets)]
    if config["resume"] not in ("auto", "never"):
        hint = "resume=auto, or resume=never to make all stages anew"
        own = [p for p in own if p.where != "resume"] + [Problem("resume", "a pipeline finds by itself where its stages are", hint)]
    budget = {} if any(problem.where.startswith("budget") for problem in own) else dict(config["budget"])
    for node in config["stages"]:
        if "method" in node["config"]:
            found = [*_budgets_of_its_own(node, budget), *check(_to_check(node, budget), allow_targets=allow_targets, rules=rules)]
            own += [Problem(prefixed(node["name"], problem.where), problem.message, problem.hint) for problem in found]
    return [*own, *without_opponent(config["stages"])]


def _to_check(node: Mapping[str, Any], budget: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's config as it will be, with placeholders for what is not made yet, and all of the pipeline's budget for its part."""
    config = entered(node["config"], placeholders(node["inputs"]))
    return config if unit_of(budget) is None else {**config, "budget": dict(budget)}


def _budgets_of_its_own(node: Mapping[str, Any], budget: Mapping[str, Any]) -> list[Problem]:
    """A stage's own budget has no effect where it gets a part of the pipeline's."""
    unit, own = unit_of(budget), unit_of(node["config"].get("budget"))
    if unit is None or own is None:
        return []
    hint = f"stages.{node['name']}.share=0.5 for half of it, or leave out budget.{unit}"
    return [Problem(f"budget.{own}", "the pipeline's own budget is divided among its stages", hint)]
