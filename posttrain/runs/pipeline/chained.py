"""A pipeline whose stages are jobs of their own, one after the other: what each of these jobs does, and the end of those that cannot."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from posttrain.errors import ConfigError, Problem
from posttrain.runs.folder_lock import alone_in
from posttrain.runs.pipeline import store
from posttrain.runs.pipeline.measured import lacking
from posttrain.runs.pipeline.run import DONE, Pipeline, open_pipeline
from posttrain.runs.pipeline.shares import unit_of
from posttrain.runs.records import Status
from posttrain.runs.resume import CONFIG


def prepare(config: dict[str, Any], folder: Path) -> None:
    """Open a pipeline's folder, before its jobs are submitted.

    Raises:
        Taken: another process runs it.
        ConfigError: the folder holds something else.
    """
    with alone_in(folder):
        open_pipeline(config, folder)


def run_stage(
    config: dict[str, Any], folder: Path, number: int, make: Callable[[dict[str, Any]], int], *, allow: Collection[str] = ()
) -> int:
    """Make one stage, after those before it; the last one closes the pipeline, where it ends well. Returns the exit code.

    make: trains a stage's complete config in its folder; returns the exit code. allow: modules that suites may name parts of.

    Raises:
        Taken: another process runs the pipeline.
        ConfigError: a stage before it is not finished, or nothing of the budget is left.
    """
    with alone_in(folder):
        pipeline = Pipeline(config, folder, make, allow=allow)
        pipeline.find(number)
        if missing := [node["name"] for node in config["stages"][:number]][len(finished(pipeline)) :]:
            message = f"starts after {missing[0]}, which is not finished in {config['stages_dir']}"
            raise ConfigError(Problem(f"stage {config['stages'][number]['name']}", message, "start the whole pipeline again"))
        code = pipeline.stage()
        if code == DONE and number + 1 == len(config["stages"]):
            pipeline.close("finished")
        return code


def close_early(config: dict[str, Any], folder: Path, status: Status) -> None:
    """Write down how a pipeline ended of which a stage ended badly, in whatever job; nothing where it has finished."""
    past = store.result_of(folder)
    if not (folder / CONFIG).is_file() or (past is not None and past["status"] == "finished"):
        return
    pipeline = Pipeline(config, folder, lambda stage: DONE)
    try:
        pipeline.find(len(config["stages"]))
    except ConfigError as error:  # nothing of the budget was left for a stage
        print(error)
    pipeline.close(status)


def finished(pipeline: Pipeline) -> list[str]:
    """Names of the stages that have ended well."""
    return [stage.name for stage in pipeline.ended if stage.status == "finished"]


def is_made(config: Mapping[str, Any], number: int, key: str) -> bool:
    """Whether a stage lies finished, measured and sound in the store, so that no job is needed for it.

    key: of `likely_keys`. False where it cannot be known yet.
    """
    unit = unit_of(config["budget"])
    exact = unit is None or all(node["share"] is not None for node in config["stages"][1 : number + 1])
    if config["resume"] == "never" or not exact:
        return False
    folder = store.folder_of(Path(config["stages_dir"]), key)
    result = store.result_of(folder)
    if result is None or result["status"] != "finished" or not (folder / CONFIG).is_file():
        return False
    there = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    stage = {**config["stages"][number]["config"], "budget": there["budget"], "output_dir": str(folder)}
    return not lacking(stage) and store.distrust(folder, stage) is None
