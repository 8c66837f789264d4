"""Whom a pipeline's stages are judged against: `against: start` is the model that the pipeline starts from, for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.evaluation.suites.about import START
from posttrain.runs.pipeline.compose import prefixed
from posttrain.runs.start import beginning_of, starting_model
from posttrain.runs.suites import suites_of

Nodes = Sequence[Mapping[str, Any]]


def with_opponent(config: dict[str, Any], nodes: Nodes, number: int) -> dict[str, Any]:
    """The config of stage `number` (from 0) of `nodes`, with the pipeline's starting model where its suites say `against: start`."""
    first = beginning_of(nodes, number)
    names = [] if first == number else _against_start(config)
    if not names:
        return config
    suites = config["evaluation"]["suite"]
    settled = {name: {**suites[name], "against": starting_model(nodes[first]["config"])} for name in names}
    return {**config, "evaluation": {**config["evaluation"], "suite": {**suites, **settled}}}


def without_opponent(nodes: Nodes) -> Iterator[Problem]:
    """Stages whose suites ask for the pipeline's starting model, where it starts from random weights."""
    for number, node in enumerate(nodes):
        first = beginning_of(nodes, number)
        if first == number or not {"evaluation", "model"} <= node["config"].keys() & nodes[first]["config"].keys():
            continue
        for name in _against_start(node["config"]):
            try:
                starting_model(nodes[first]["config"])
            except ConfigError as error:
                for problem in error.problems:
                    where = prefixed(node["name"], f"evaluation.suite.{name}.{problem.where}")
                    yield Problem(where, problem.message.replace("the run", "the pipeline"), problem.hint)


def _against_start(config: Mapping[str, Any]) -> list[str]:
    return [suite.name for suite in suites_of(config) if suite.settings.get("against") == START]
