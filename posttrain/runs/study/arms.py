"""A study's runs, and what is wrong with its arms as they are composed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from posttrain.errors import Problem
from posttrain.evaluation.suites.about import about
from posttrain.runs import suggest
from posttrain.runs.comparison.settings import same_arm
from posttrain.runs.study.spec import Study
from posttrain.runs.suites import suites_of

Config = Mapping[str, Any]
OF_TRAINING = ("loss", "reward/mean", "kl", "rewards/accuracy", "rewards/margin", "accuracy")
OF_ANSWERS = ("val/reward/", "val/win_rate/", "reward/mean")  # that are sampled; so is val/reward


def alike(arms: Mapping[str, Mapping[int, Config]]) -> Iterator[Problem]:
    """Arms that would train the same with every seed. arms: the configs of each by seed."""
    names = list(arms)
    for place, name in enumerate(names):
        same = next((other for other in names[:place] if same_arm(arms[other], arms[name])), None)
        if same is not None:
            yield Problem(f"study.arms.{name}", f"differs from the arm {same} only in its name", "change one of them, or leave it out")


def unmeasured(study: Study, arms: Mapping[str, Config]) -> Iterator[Problem]:
    """A metric that some arm will not have when it has finished."""
    if study.metric is None:
        return
    lasts = {name: _last(config) for name, config in arms.items()}
    lacking = [name for name, last in lasts.items() if not is_measured(study.metric, last)]
    if not lacking:
        return
    names = sorted({name for last in lasts.values() for name in [*_exact(last), *_beginnings(last)]})
    there = [name for name in names if all(is_measured(name, last) for last in lasts.values())]
    none, some = f"no arm will have {study.metric}", f"{', '.join(lacking)} will not have {study.metric}, so nothing can be compared"
    yield Problem("study.metric", none if len(lacking) == len(arms) else some, suggest.hint(study.metric, there))


def _last(config: Config) -> Config:
    """What a run ends with: of a pipeline, its last stage."""
    stages = config.get("stages")
    return stages[-1]["config"] if stages else config


def is_measured(metric: str, config: Config) -> bool:
    """Whether a run will have the metric when it has finished, as far as that can be known."""
    if metric in _exact(config):
        return True
    unsampled = config["rollout"] is None and (metric == "val/reward" or metric.startswith(OF_ANSWERS))
    return not unsampled and any(metric.startswith(name) for name in _beginnings(config))


def _exact(config: Config) -> list[str]:
    """Names of what is measured at a run's end."""
    answered = ["eval/exact_match"] if config["evaluation"]["exact_match"] is not None else []
    answered += ["val/reward"] if config["rollout"] is not None and config["validate"]["at_end"] else []
    named = [(suite, about(suite.target).metrics) for suite in suites_of(config)]
    return [*answered, *(f"eval/{suite.name}/{name}" for suite, metrics in named if metrics for name in metrics(suite.settings))]


def _beginnings(config: Config) -> list[str]:
    """How the names begin of what is measured, where only training or the suite knows them whole."""
    of_kind = ["val/"] if config["rollout"] is None else ["val/reward/", "val/win_rate/"]
    held_out = of_kind if config["validate"]["at_end"] else []
    open_suites = [f"eval/{suite.name}/" for suite in suites_of(config) if about(suite.target).metrics is None]
    return [*held_out, *open_suites, *OF_TRAINING]
