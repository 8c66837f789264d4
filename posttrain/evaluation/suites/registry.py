"""Suites by name: conf/evaluation/suite/NAME.yaml names a function of this package and its settings. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, cast

from omegaconf import OmegaConf

from posttrain.errors import ConfigError, MissingExtra, Problem
from posttrain.evaluation.suites.about import HOME
from posttrain.runs.group_config import hydra_config
from posttrain.runs.options import groups, options, search_path
from posttrain.runs.overrides import Choice
from posttrain.runs.suggest import hint

GROUP = "evaluation/suite"
EXTRAS = {"harness": ("lm_eval", "eval")}  # module of the suite -> package that must be there, extra that brings it


@dataclass(frozen=True)
class Suite:
    """target: dotted name of the function that runs it. settings: its keyword arguments; the command line may overrule them."""

    name: str
    target: str
    settings: Mapping[str, Any]


def find_suite(name: str, parts: Mapping[str, str] | None = None) -> Suite:
    """The suite called `name`. parts: options of the groups within it, such as a judge's backend.

    Raises ConfigError with the nearest names if there is none, MissingExtra if it cannot run here.
    """
    names = [option.name for option in options(search_path(), GROUP)]
    if name not in names:
        raise ConfigError(Problem(f"suite={name}", "there is no such suite", hint(name, names, most=40)))
    chosen = [Choice(f"{GROUP}/{part}", option, f"{part}={option}") for part, option in (parts or {}).items()]
    for choice in chosen:
        known = [option.name for option in options(search_path(), choice.group)]
        if choice.option not in known:
            raise ConfigError(Problem(choice.text, "there is no such option", hint(str(choice.option), known, most=40)))
    config = hydra_config([Choice(GROUP, (name,), f"suite={name}"), *chosen], search_path())
    suite = suite_of(name, cast(dict[str, Any], OmegaConf.to_container(config.evaluation.suite[name])))
    if extra := missing_extra(suite):
        raise MissingExtra(f"suite={name}", extra)
    return suite


def parts_of(suite: Suite) -> list[str]:
    """Which of a suite's settings are chosen among the options of a group."""
    named = [group.removeprefix(f"{GROUP}/") for group in groups(search_path()) if group.startswith(f"{GROUP}/")]
    return [name for name in named if name in suite.settings]


def suite_of(name: str, node: Mapping[str, Any]) -> Suite:
    """The suite that a config's node describes; settings that are still to be named are left out."""
    return Suite(name, node["_target_"], {key: value for key, value in node.items() if key != "_target_" and value != "???"})


def missing_extra(suite: Suite) -> str:
    """The extra without which the suite cannot run here; empty where all is there."""
    package, extra = EXTRAS.get(suite.target.removeprefix(HOME).split(".")[0], ("posttrain", ""))
    return "" if find_spec(package) is not None else extra
