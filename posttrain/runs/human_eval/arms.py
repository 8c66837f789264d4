"""The arms whose answers are shown: runs of one config, or what study.json says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.evaluation.human.sheet import LETTERS
from posttrain.runs.base_config import load_config
from posttrain.runs.comparison.arms import names_of
from posttrain.runs.comparison.read import CONFIG, RESULT, run_folders
from posttrain.runs.comparison.settings import settings_of
from posttrain.runs.pipeline.wanted import stage_folders

STUDY = "study.json"


@dataclass(frozen=True)
class Arm:
    """name: told by the key alone. runs: folders of its runs, one or more seeds."""

    name: str
    runs: tuple[Path, ...]


def read_arms(runs: Sequence[str] | None, study: str | None) -> list[Arm]:
    """The arms of some runs, or of a study. Raises ConfigError with all that is wrong."""
    if (runs is None) == (study is None):
        raise ConfigError(Problem("runs", "is needed" if runs is None else "and study are both given", "runs=[DIR,DIR,...] or study=DIR"))
    arms = of_runs(runs) if runs is not None else of_study(Path(str(study)).expanduser().absolute())
    if not 2 <= len(arms) <= len(LETTERS):
        key = "runs" if runs is not None else "study"
        message = f"{len(arms)} arms: answers of 2 to {len(LETTERS)} can be shown beside each other"
        raise ConfigError(Problem(key, message, "runs that differ in nothing but the seed are one arm"))
    return arms


def of_runs(given: Sequence[str]) -> list[Arm]:
    """Runs with the same config but for the seed are one arm; a folder of runs stands for all in it."""
    problems, folders = [], []
    for text in given:
        found = run_folders(Path(text).expanduser().absolute())
        folders += found
        problems += [] if found else [Problem(f"runs: {text}", "is no run's folder, nor are folders in it", "give the output_dir of runs")]
    twice = sorted({str(folder) for folder in folders if folders.count(folder) > 1})
    problems += [Problem(f"runs: {folder}", "is named twice") for folder in twice]
    problems += _unfinished(folders)
    if problems:
        raise ConfigError(problems)
    groups: dict[str, list[Path]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for folder in folders:
        flat = settings_of(load_config(folder / CONFIG))
        name = json.dumps(flat, sort_keys=True, default=str)
        groups.setdefault(name, []).append(folder)
        settings[name] = flat
    flats = list(settings.values())
    keys = [key for key in dict.fromkeys(key for flat in flats for key in flat) if len({str(flat.get(key)) for flat in flats}) > 1]
    names = names_of([{key: flat.get(key) for key in keys} for flat in flats])
    return [Arm(name, tuple(group)) for name, group in zip(names, groups.values(), strict=True)]


def of_study(folder: Path) -> list[Arm]:
    """The arms that study.json names; a sweep's folder without one is read as its runs."""
    if not folder.is_dir():
        raise ConfigError(Problem(f"study={folder}", "no such folder", "give the folder of a study or of a sweep"))
    if not (folder / STUDY).is_file():
        return of_runs([str(folder)])
    try:
        found = json.loads((folder / STUDY).read_text(encoding="utf-8"))
        arms = [Arm(str(arm["name"]), tuple(folder / run for run in arm["runs"])) for arm in found["arms"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(Problem(f"study={folder}", f"{STUDY} is broken: {error}")) from error
    if problems := _unfinished([run for arm in arms for run in arm.runs]):
        raise ConfigError(problems)
    return arms


def _unfinished(folders: Sequence[Path]) -> list[Problem]:
    return [
        Problem(f"runs: {folder}", f"the run is {status}", f"run the same command again with output_dir={folder}")
        for folder in folders
        if (status := _status(folder)) != "finished"
    ]


def _status(folder: Path) -> str:
    file = folder / RESULT
    if not file.is_file():
        return "not finished"
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["status"])
    except (ValueError, KeyError, TypeError):
        return f"broken ({RESULT})"


def last_stage(folder: Path) -> Path:
    """The folder that holds a run's answers and config: itself, of a pipeline its last stage's."""
    stages = json.loads((folder / RESULT).read_text(encoding="utf-8")).get("stages")
    return folder if not stages else stage_folders(folder, stages)[-1]
