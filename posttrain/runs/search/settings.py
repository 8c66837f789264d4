"""The keys of a search (`hydra.sweeper.*`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from posttrain.errors import ConfigError, MissingExtra, Problem
from posttrain.runs.comparison.direction import lower_is_better
from posttrain.runs.validate import node_problems

TARGET = "posttrain.runs.search.settings.Search"
Direction = Literal["auto", "minimize", "maximize"]
MEASURED = ("val/", "eval/", "train/")  # how names of metrics begin


@dataclass(frozen=True, kw_only=True)
class Search:
    """See conf/hydra/sweeper/optuna.yaml."""

    n_trials: int = 20
    metric: str | None = None
    direction: Direction = "auto"
    sampler: Literal["tpe", "random", "gp"] = "tpe"
    startup_trials: int = 10
    seed: int = 0
    n_jobs: int = 1


def settings_of(node: Mapping[str, Any]) -> Search:
    """The settings in a `hydra.sweeper` node. Raises ConfigError with all that is wrong, MissingExtra without Optuna."""
    problems = node_problems(dict(node), "hydra.sweeper")
    problems += [] if problems else list(_out_of_range(node))
    if problems:
        raise ConfigError(problems)
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise MissingExtra("hydra/sweeper=optuna", "search")
    return Search(**{key: value for key, value in node.items() if key != "_target_"})


def _out_of_range(node: Mapping[str, Any]) -> Iterator[Problem]:
    for key, least in (("n_trials", 1), ("startup_trials", 0), ("seed", 0), ("n_jobs", 1)):
        if node[key] < least:
            yield Problem(f"hydra.sweeper.{key}={node[key]}", f"expected an integer >= {least}")
    metric = node["metric"]
    if metric is not None and not metric.startswith(MEASURED):
        yield Problem(f"hydra.sweeper.metric={metric}", "is no metric of a run", "val/loss, val/reward, eval/exact_match, ...")


def goal(search: Search, config: Mapping[str, Any]) -> tuple[str, bool]:
    """The metric, and whether lower is better."""
    monitor = str(config["checkpoint"]["monitor"])
    metric = search.metric or monitor.removeprefix("-")
    if search.direction != "auto":
        return metric, search.direction == "minimize"
    if metric == monitor.removeprefix("-"):
        return metric, not monitor.startswith("-")
    return metric, lower_is_better(metric)
