"""Options that the data leave without effect: an error where the user asked for them, a line where they are the default."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import yaml

from posttrain.errors import ConfigError
from posttrain.methods.base import Method
from posttrain.runs.options import config_dir
from posttrain.runs.train import Job

log = logging.getLogger(__name__)


def check_used(job: Job, method: Method) -> None:
    """Before training. Raises ConfigError."""
    problems = list(method.unused(job.prepared.train.values()))
    asked = [problem for problem in problems if not is_default(job.config, problem.where)]
    if asked:
        raise ConfigError(asked)
    for problem in problems if job.ranks.leads else ():
        log.warning("%s", problem)


def is_default(config: Mapping[str, Any], key: str) -> bool:
    """Whether an option of the data is what every data set has."""
    group, _, name = key.partition(".")
    return group == "data" and bool(config["data"].get(name) == data_defaults()[name])


def data_defaults() -> dict[str, Any]:
    """The keys of a `data` node with their defaults."""
    defaults: dict[str, Any] = yaml.safe_load((config_dir() / "data" / "_base.yaml").read_text(encoding="utf-8"))
    return defaults
