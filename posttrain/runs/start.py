"""The model that a run started from: at the beginning of its pipeline, and before the run that it enters from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from posttrain.errors import ConfigError, Problem
from posttrain.runs import entering
from posttrain.runs.against import HUB

Config = Mapping[str, Any]
Nodes = Sequence[Mapping[str, Any]]
NAME_ONE = "against=DIR of a run, an artifact or a model"


def starting_model(config: Config) -> str:
    """Its folder, or hf://NAME[@REVISION]. What a run costs begins with the run in `entering`, and so does what it started from.

    config: of a run, or of a pipeline's stage that starts from no other one. Raises ConfigError where it started from random weights.
    """
    model = _first(config)["model"]
    if model["path"] is None or model["weights"] == "random":
        message = "is needed: the run started from random weights, whose answers say nothing"
        raise ConfigError(Problem("against", message, NAME_ONE))
    path = str(model["path"])
    if Path(os.path.expanduser(path)).is_dir() or path.startswith((".", "/", "~")):
        return path
    return f"{HUB}{path}" + (f"@{model['revision']}" if model["revision"] else "")


def _first(config: Config) -> Config:
    if not config["entering"]:
        return config
    found = entering.composed(config["entering"], config)
    if found.problems:
        raise ConfigError(found.problems)
    return found.config


def beginning_of(nodes: Nodes, number: int) -> int:
    """The stage at which the chain of policies begins that leads to stage `number` (from 0) of a pipeline's `stages`."""
    earlier = {node["name"]: place for place, node in enumerate(nodes[:number])}
    source = earlier.get(nodes[number]["inputs"].get("policy"))
    return number if source is None else beginning_of(nodes, source)


def start_of(run: Path) -> str:
    """The model that the run in a folder started from, as its config and, where it is a stage that lies in one, its pipeline's say.

    Raises ConfigError where it is no run's folder, or the run started from random weights.
    """
    folder = Path(os.path.expanduser(run)).absolute()
    if not (folder / "config.yaml").is_file():
        raise ConfigError(Problem("against", f"is needed: {run} is not a run's folder, which would say what it started from", NAME_ONE))
    own = _config(folder)
    nodes, number = _stages(folder, own)
    if nodes:
        return starting_model(nodes[beginning_of(nodes, number)]["config"])
    return starting_model({**own, "output_dir": str(folder)})


def _stages(folder: Path, own: Config) -> tuple[Nodes, int]:
    """The stages of the pipeline in a folder, or of the one that the folder is a stage of, and which of them is meant; none for others."""
    from posttrain.runs.pipeline.wanted import place_of

    if own.get("stages"):
        return own["stages"], len(own["stages"]) - 1
    nodes: Nodes = (_config(folder.parent).get("stages") or ()) if (folder.parent / "config.yaml").is_file() else ()
    place = next((number for number in range(len(nodes)) if place_of(nodes, number) == folder.name), None)
    return ((), 0) if place is None else (nodes, place)


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return config
