"""A pipeline as one SLURM job: a single task, which starts each stage's ranks itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.runs.pipeline.compose import prefixed

SAME = ("nodes", "devices", "accelerator", "cpus_per_device", "memory_gb", "node_memory_gb")


def one_task(launcher: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The launcher's node with one task, which has the processors of all.

    Raises:
        ConfigError: the stages need several machines, or different ones.
    """
    if problems := _problems(config):
        raise ConfigError(problems)
    return {**launcher, "tasks_per_node": 1, "cpus_per_task": launcher["cpus_per_task"] * launcher["tasks_per_node"]}


def _problems(config: Mapping[str, Any]) -> list[Problem]:
    if config["hardware"]["nodes"] > 1:
        hint = "run its stages one by one, each from model=hf model.path=THE_ONE_BEFORE/artifact"
        return [Problem("hardware.nodes", f"a pipeline is one job on one machine, not on {config['hardware']['nodes']}", hint)]
    return [
        Problem(prefixed(node["name"], f"hardware.{key}"), "the stages of a pipeline share one job, so they need the same hardware")
        for node in config["stages"]
        for key in SAME
        if node["config"]["hardware"][key] != config["hardware"][key]
    ]
