"""Rules over the suites that a run is measured by at its end; see `posttrain.runs.rules`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from posttrain.errors import ConfigError, MissingExtra, Problem
from posttrain.evaluation.suites.about import HELD_OUT, HOME, START, about
from posttrain.evaluation.suites.registry import Suite, missing_extra
from posttrain.runs.annotations import fits, in_words
from posttrain.runs.pipeline.inputs import PLACEHOLDER
from posttrain.runs.source import class_constant
from posttrain.runs.start import starting_model
from posttrain.runs.suites import read_as, suites_of

Config = dict[str, Any]
Existing = Callable[[str, str | None], Iterator[Problem]]


def suites_can_run(config: Config, existing: Existing) -> Iterator[Problem]:
    """Each must be a suite of this package, find a model that writes, what it measures on, and numbers that it can use.

    existing: problems of a key with a path that is not there.
    """
    yield from _not_chosen(config)
    for suite in suites_of(config):
        key = f"evaluation.suite.{suite.name}"
        if not suite.target.startswith(HOME):
            yield Problem(f"{key}._target_", f"may only name a function in {HOME[:-1]}, got {suite.target}")
            continue
        if class_constant(str(config["method"].get("_target_")), "language_model") is False:
            yield Problem(key, f"method={config['method'].get('name')} makes no model that writes", "leave it out")
            continue
        if extra := missing_extra(suite):
            yield from (Problem(key, problem.message, problem.hint) for problem in MissingExtra(key, extra).problems)
        yield from (Problem(f"{key}.{problem.where}", problem.message, problem.hint) for problem in _of_run(suite, config))
        yield from _ranges(suite, key)
        yield from _places(suite, key, existing)


def _not_chosen(config: Config) -> Iterator[Problem]:
    """Keys of a suite that is not one of the run's."""
    for name, node in (config["evaluation"].get("suite") or {}).items():
        if isinstance(node, dict) and "_target_" not in node:
            chosen = ",".join([*(suite.name for suite in suites_of(config)), name])
            yield from (Problem(f"evaluation.suite.{name}.{key}", f"{name} is not chosen", f"evaluation/suite=[{chosen}]") for key in node)


def _of_run(suite: Suite, config: Config) -> Iterator[Problem]:
    """What stands for something of the run, and is not there; what a pipeline's later stage started from is told of the pipeline."""
    try:
        if suite.settings.get("data") == HELD_OUT:
            read_as(config, suite)
        if suite.settings.get("against") == START and not str(config["model"]["path"]).startswith(PLACEHOLDER):
            starting_model(config)
    except ConfigError as error:
        yield from error.problems


def _ranges(suite: Suite, key: str) -> Iterator[Problem]:
    for name, annotation in about(suite.target).ranges.items():
        if name in suite.settings and not fits(suite.settings[name], annotation):
            yield Problem(f"{key}.{name}", f"expected {in_words(annotation)}, got {suite.settings[name]!r}")


def _places(suite: Suite, key: str, existing: Existing) -> Iterator[Problem]:
    """Files and folders that the settings name."""
    named = {"data": suite.settings.get("data"), "against": suite.settings.get("against")}
    named |= {f"{name}.path": value.get("path") for name, value in suite.settings.items() if isinstance(value, dict)}
    for name, value in named.items():
        if isinstance(value, str) and value not in (HELD_OUT, START, "???"):
            yield from existing(f"{key}.{name}", value)
