"""Which of a study's runs are there already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.runs.base_config import load_config
from posttrain.runs.data_record import data_problems
from posttrain.runs.resume import CONFIG, OF_NUMBERS, differences, find_start
from posttrain.runs.suites import lacking


def is_finished(config: Mapping[str, Any]) -> bool:
    """Whether the run in the config's folder is this one, at its end, and measured by all its suites.

    False for a pipeline, which finds out itself what its stages lack. A run that was shorter, or measured otherwise, is not continued here
    as it is alone: its schedule and its numbers would be neither the old configuration's nor this one's.

    Raises ConfigError where the folder holds a run of another configuration or, finished, of other data.
    """
    folder = Path(config["output_dir"])
    if config["resume"] == "never" or not (folder / CONFIG).is_file():
        return False
    if config.get("stages"):
        _refuse(folder, _other_pipeline(config, folder))
        return False
    start = find_start(config, folder)
    problems = list(differences(load_config(folder / CONFIG), config, counted=OF_NUMBERS)) if start.state is not None else []
    _refuse(folder, problems + (data_problems(config) if start.finished else []))
    return start.finished and not lacking(config)


def _other_pipeline(config: Mapping[str, Any], folder: Path) -> list[Problem]:
    """What makes the pipeline in a folder, as far as it came, another one than this."""
    from posttrain.runs.pipeline import earlier, store

    result = store.result_of(folder)
    if result is None and not (folder / store.BEGUN).is_dir():
        return []
    problems = earlier.differences_between(load_config(folder / CONFIG), config, counted=OF_NUMBERS)
    ended = result is not None and result["status"] == "finished"
    return problems + (earlier.data_problems(config, folder) if ended else [])


def _refuse(folder: Path, problems: Sequence[Problem]) -> None:
    if problems:
        raise ConfigError([Problem(f"{folder.parent.name}/{folder.name}: {p.where}", p.message, p.hint) for p in problems])
