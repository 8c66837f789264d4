"""What the next stage of a pipeline is to be: its config with its part of the budget, what enters it, and its name in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.runs.pipeline import store
from posttrain.runs.pipeline.identity import stage_hash
from posttrain.runs.pipeline.inputs import entered
from posttrain.runs.pipeline.opponents import with_opponent
from posttrain.runs.pipeline.outcome import Ended
from posttrain.runs.pipeline.shares import part_of, spent_by, unit_of


@dataclass(frozen=True)
class Wanted:
    """title: for the terminal. place: its link in the pipeline's folder. key: its hash. inputs: artifacts' paths by input.

    config: with its part of the budget; its inputs are not entered.
    """

    name: str
    title: str
    place: Path
    key: str
    inputs: Mapping[str, str]
    config: dict[str, Any]

    def complete(self, folder: Path, tracking: Mapping[str, Any]) -> dict[str, Any]:
        """The config of the stage's run in `folder`, with everything that it needs to be made alone."""
        return {**entered(self.config, self.inputs), "output_dir": str(folder), "resume": "auto", "tracking": dict(tracking)}


def wanted(config: Mapping[str, Any], folder: Path, ended: Sequence[Ended]) -> Wanted:
    """The stage that follows those that have ended. config: the pipeline's. folder: the pipeline's.

    Raises ConfigError where nothing of the budget is left for it.
    """
    nodes, number = config["stages"], len(ended)
    node = nodes[number]
    own = with_opponent(_with_budget(config, number, ended), nodes, number)
    before = {stage.name: stage for stage in ended}
    key = stage_hash(own, {name: before[source].key for name, source in node["inputs"].items()})
    paths = {name: str(before[source].folder / store.ARTIFACT) for name, source in node["inputs"].items()}
    return Wanted(node["name"], f"stage {number + 1}/{len(nodes)} {node['name']}", folder / place_of(nodes, number), key, paths, own)


def place_of(nodes: Sequence[Mapping[str, Any]], number: int) -> str:
    """The name of a stage's link in the pipeline's folder: `1_sft`."""
    return f"{number + 1:0{len(str(len(nodes)))}d}_{nodes[number]['name']}"


def stage_folders(folder: Path, stages: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Where the stages of a pipeline's result.json lie: where it says, else, as when they were moved, behind the links beside it."""
    links = [folder / place_of(stages, number) for number in range(len(stages))]
    told = [folder / stage["folder"] for stage in stages]
    return [place if place.is_dir() else link for place, link in zip(told, links, strict=True)]


def _with_budget(config: Mapping[str, Any], number: int, ended: Sequence[Ended]) -> dict[str, Any]:
    """The stage's config with its part of the pipeline's budget."""
    own: dict[str, Any] = config["stages"][number]["config"]
    unit = unit_of(config["budget"])
    if unit is None:
        return own
    spent = sum(spent_by(unit, stage.result or {}, stage.config) for stage in ended)
    return {**own, "budget": part_of(config["budget"], config["stages"], number, spent)}


def likely_keys(config: Mapping[str, Any]) -> list[str]:
    """A name for each stage before any is made: equal for two stages that will have equal hashes, and the hash itself where nothing that
    is yet to be spent decides on it.
    """
    nodes, keys = config["stages"], list[str]()
    places = {node["name"]: number for number, node in enumerate(nodes)}
    for number, node in enumerate(nodes):
        parents = {name: keys[places[source]] for name, source in node["inputs"].items()}
        keys.append(stage_hash({**node["config"], "budget": _likely_budget(config, number, keys)}, parents))
    return keys


def _likely_budget(config: Mapping[str, Any], number: int, earlier: Sequence[str]) -> Mapping[str, Any] | None:
    """A stage's part of the budget where it is known; else all that decides on it."""
    node, unit = config["stages"][number], unit_of(config["budget"])
    if unit is None:
        own: Mapping[str, Any] | None = node["config"]["budget"]
        return own
    if number == 0 or node["share"] is not None:
        return part_of(config["budget"], config["stages"], number, 0.0)
    shares = [later["share"] for later in config["stages"][number:]]
    return {unit: {"of": config["budget"][unit], "shares": shares, "after": list(earlier)}}
