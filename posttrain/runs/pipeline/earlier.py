"""The pipeline that a folder holds from an earlier command, beside the one that is asked for now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import Problem
from posttrain.runs import data_record
from posttrain.runs.pipeline.identity import without_effects
from posttrain.runs.pipeline.wanted import place_of
from posttrain.runs.resume import differences


def differences_between(before: Any, now: Mapping[str, Any], *, counted: Sequence[str] = ()) -> list[Problem]:
    """What makes two configurations different pipelines. counted: keys that count although a pipeline may change them."""
    hint = "choose another output_dir, or resume=never to set aside what is there"
    stages = before.get("stages") if isinstance(before, dict) else None
    if not stages:
        return [Problem("output_dir", "holds something else than a pipeline", hint)]
    names = [[(node["name"], node["inputs"]) for node in nodes] for nodes in (stages, now["stages"])]
    if names[0] != names[1]:
        old, new = (", ".join(name for name, _ in found) for found in names)
        return [Problem("stages", f"the pipeline in output_dir has {old}, this command {new}, or other inputs", hint)]
    found = [
        Problem(f"stage {new['name']}: {problem.where}", problem.message, problem.hint)
        for old, new in zip(stages, now["stages"], strict=True)
        for problem in differences(old["config"], new["config"], counted=counted)
    ]
    return [*differences(_budget(before), _budget(now), counted=counted), *found]


def _budget(config: Mapping[str, Any]) -> dict[str, Any]:
    """The budget, with how the stages share it as a part of it."""
    return {"budget": {**config["budget"], "shares": {node["name"]: node["share"] for node in config["stages"]}}}


def comes_to_the_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two configurations of one pipeline have the same result, so that what the one came to stands for the other."""
    stages = [[without_effects(node["config"]) for node in config["stages"]] for config in (before, now)]
    return stages[0] == stages[1] and _budget(before) == _budget(now)


def data_problems(config: Mapping[str, Any], folder: Path) -> list[Problem]:
    """Sources of a finished pipeline's stages whose contents are others by now."""
    nodes = config["stages"]
    stages = [(node, {**node["config"], "output_dir": str(folder / place_of(nodes, number))}) for number, node in enumerate(nodes)]
    return [
        Problem(f"stage {node['name']}: {problem.where}", problem.message, problem.hint)
        for node, stage in stages
        for problem in data_record.data_problems(stage)
    ]
