"""Suites by name: conf/evaluation/suite/NAME.yaml names a function of this package and its settings. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import yaml

from posttrain.errors import ConfigError, MissingExtra, Problem
from posttrain.runs.options import config_dir, options
from posttrain.runs.suggest import hint

GROUP = "evaluation/suite"
HOME = "posttrain.evaluation.suites."
EXTRAS = {"harness": ("lm_eval", "eval")}  # module of the suite -> package that must be there, extra that brings it


@dataclass(frozen=True)
class Suite:
    """target: dotted name of the function that runs it. settings: its keyword arguments; the command line may overrule them."""

    name: str
    target: str
    settings: Mapping[str, Any]


def find_suite(name: str) -> Suite:
    """The suite called `name`. Raises ConfigError with the nearest names if there is none, MissingExtra if it cannot run here."""
    found = {option.name: option for option in options((config_dir(),), GROUP)}
    if name not in found:
        raise ConfigError(Problem(f"suite={name}", "there is no such suite", hint(name, found, most=40)))
    node = yaml.safe_load(found[name].path.read_text(encoding="utf-8"))
    target = node.pop("_target_")
    if not target.startswith(HOME):
        raise ConfigError(Problem(str(found[name].path), f"_target_ may only name a function in {HOME[:-1]}, got {target}"))
    package, extra = EXTRAS.get(target.removeprefix(HOME).split(".")[0], ("posttrain", ""))
    if find_spec(package) is None:
        raise MissingExtra(f"suite={name}", extra)
    return Suite(name, target, node)
