"""A run that starts from the artifact of another one, which is made first where it is not there yet."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import ConfigError, Problem
from posttrain.runs.base_config import load_config

if TYPE_CHECKING:
    from posttrain.runs.budget.amount import Budget

if TYPE_CHECKING:
    from posttrain.runs.compose import Composed

FOLDER = "entering"


def config_of(overrides: Sequence[str], config: Mapping[str, Any], *, allow_targets: Collection[str] = ()) -> dict[str, Any]:
    """The configuration of the run that is made first: these overrides, with the seed and the hardware of `config` unless they name others.

    Raises ConfigError with the problems of the overrides.
    """
    from posttrain.runs.check import check
    from posttrain.runs.rules import ELSEWHERE

    first = composed(overrides, config)
    found = first.config
    rules = [rule for rule in ELSEWHERE if "hardware" not in rule.reads]  # what is wrong there is wrong with `config` too
    problems = [*first.problems, *check(found, allow_targets=allow_targets, rules=rules)]
    problems = [problem for problem in problems if not problem.where.startswith("hardware")]
    if problems:
        raise ConfigError([Problem(f"entering: {problem.where}", problem.message, problem.hint) for problem in problems])
    if found["stages"]:
        raise ConfigError(Problem("entering", "a run that is made first cannot be a pipeline", "make the pipeline start from that run"))
    if found["entering"]:
        raise ConfigError(Problem("entering", "a run that is made first cannot ask for another one itself", "name one run"))
    return found


def composed(overrides: Sequence[str], config: Mapping[str, Any]) -> Composed:
    """The same, not checked."""
    from posttrain.runs.compose import compose_partly

    named = {line.split("=", 1)[0].lstrip("+") for line in overrides}
    shared = {"seed": config["seed"], "hardware": config["hardware"]["name"]}
    return compose_partly([*overrides, *(f"{key}={value}" for key, value in shared.items() if key not in named)])


def make(config: Mapping[str, Any], *, allow_targets: Collection[str] = ()) -> int:
    """Make the run that this one starts from, in a process and a folder of its own; returns its exit code. At once where it is finished."""
    from posttrain.runs.job import run_isolated

    first = config_of(config["entering"], config, allow_targets=allow_targets)
    folder = folder_of(config)
    resume = "auto" if config["resume"] not in ("auto", "never") else config["resume"]
    return run_isolated({**first, "output_dir": str(folder), "tracking": config["tracking"], "resume": resume}, allow_targets=allow_targets)


def spent(config: Mapping[str, Any], unit: str) -> float:
    """What the run that was made first is charged, in a budget's unit; 0 without one. Like an earlier stage, however long ago it was made.

    Raises ConfigError where it left no result.
    """
    if not config["entering"]:
        return 0.0
    from posttrain.runs.pipeline.shares import spent_by

    return spent_by(unit, result_of(config), load_config(folder_of(config)))


def result_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """result.json of the run that was made first. Raises ConfigError where there is none."""
    file = folder_of(config) / "result.json"
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(Problem("entering", f"{file} cannot be read: {error}", "resume=never makes both runs anew")) from error
    return found


def check_left(config: Mapping[str, Any], budget: Budget) -> None:
    """Raises ConfigError where the run that was made first has spent all of the budget."""
    if (gone := spent(config, budget.unit)) >= budget.amount:
        raise ConfigError(nothing_left(gone, budget))


def nothing_left(gone: float, budget: Budget) -> Problem:
    """What is wrong with a budget that the run which is made first has all to itself. gone: what it spends."""
    message = f"the run that is made first (entering) spends {gone:.4g} of {budget.amount:.4g}, so nothing is left for this one"
    return Problem(budget.key, message, "raise the budget, or shorten the run in entering")


def applied(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the artifact of the first run as its model."""
    if not config["entering"]:
        return config
    entered = {"path": str(folder_of(config) / "artifact"), "weights": "pretrained", "architecture": None, "revision": None}
    return {**config, "model": {**config["model"], **entered}}


def folder_of(config: Mapping[str, Any]) -> Path:
    """Where the run that is made first lies."""
    return Path(config["output_dir"]) / FOLDER
