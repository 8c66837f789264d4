"""Finished runs as they lie in their folders."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from posttrain.errors import ConfigError, Problem
from posttrain.evaluation.scores import Scores
from posttrain.runs.entering import FOLDER as ENTERED
from posttrain.runs.kept_scores import FOLDER, kept_scores
from posttrain.runs.pipeline.wanted import stage_folders
from posttrain.runs.records import decode
from posttrain.runs.start import beginning_of

CONFIG, RESULT, ARTIFACT = "config.yaml", "result.json", "artifact/artifact.json"
MEASURED_AS = "measured_as"
TOLERANCE = 1e-4  # relative: rewards are float32


@dataclass(frozen=True)
class Run:
    """A finished run. config: resolved. result: of result.json. metrics: final ones, and eval/SUITE/NAME of later evaluations.

    no_numbers: what it has by a metric's name that is none, such as NaN. scores: of single examples, where they were kept. data: digests of
    its data by source. suites: what each later evaluation read.
    stages: of a pipeline, in order; what is measured of it is measured of the last one's artifact. entered: the run it starts from, where
    that was made for it.
    """

    folder: Path
    config: Mapping[str, Any]
    result: Mapping[str, Any]
    metrics: Mapping[str, float]
    no_numbers: Mapping[str, str]
    scores: Mapping[str, Scores]
    data: Mapping[str, str]
    suites: Mapping[str, Any]
    stages: tuple[Run, ...] = ()
    entered: Run | None = None

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def parts(self) -> tuple[Run, ...]:
        """The runs it is made of: its stages, or itself."""
        return self.stages or (self,)

    @property
    def beginning(self) -> Run:
        """The one whose start is the model that all of it started from: where its chain of policies begins, or what that was made from."""
        first = self.stages[beginning_of(self.config["stages"], len(self.stages) - 1)] if self.stages else self
        return first.entered or first

    @property
    def paid(self) -> tuple[Run, ...]:
        """All runs that it costs: its parts, each after the run that it starts from."""
        return tuple(run for part in self.parts for run in ((part.entered, part) if part.entered else (part,)))

    @property
    def devices(self) -> int:
        """That it ran on."""
        hardware = self.config["hardware"]
        return int(hardware["nodes"]) * int(hardware["devices"])


def read_runs(given: Sequence[str]) -> list[Run]:
    """The runs in these folders; a folder of runs (a sweep's) stands for all in it. Raises ConfigError with all that is wrong."""
    problems: list[Problem] = []
    folders: list[Path] = []
    for text in given:
        found = run_folders(Path(text).expanduser().absolute())
        folders += found
        problems += [] if found else [_no_run(text)]
    twice = {str(folder) for folder in folders if [other.resolve() for other in folders].count(folder.resolve()) > 1}
    problems += [Problem(f"runs: {folder}", "is named twice") for folder in sorted(twice)]
    return _each(list(dict.fromkeys(folders)), problems)


def read_arms(arms: Mapping[str, Sequence[Path]]) -> dict[str, list[Run]]:
    """The runs of each arm of a study. Raises ConfigError with all that is wrong."""
    folders = [folder for some in arms.values() for folder in some]
    problems = [_no_run(str(folder)) for folder in folders if not (folder / CONFIG).is_file()]
    found = {run.folder: run for run in _each([folder for folder in folders if (folder / CONFIG).is_file()], problems)}
    return {name: [found[folder] for folder in some] for name, some in arms.items()}


def _each(folders: Sequence[Path], problems: list[Problem]) -> list[Run]:
    runs = []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return runs


def run_folders(folder: Path) -> list[Path]:
    """The folder itself if it is a run's, else those in it that are, by name."""
    if (folder / CONFIG).is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{CONFIG}")) if folder.is_dir() else []


def _no_run(text: str) -> Problem:
    there = Path(text).expanduser()
    what = "is no run's folder, nor are folders in it" if there.is_dir() else "is a file" if there.exists() else "no such folder"
    return Problem(f"runs: {text}", what, "give the output_dir of finished runs, or the folder of a sweep")


def read_run(folder: Path) -> Run:
    """Raises ConfigError for a run that is not finished or whose files are broken."""
    where = f"runs: {folder}"
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        result: dict[str, Any] = _json(folder / RESULT) if (folder / RESULT).is_file() else {"status": "not finished"}
        if result["status"] != "finished":
            hint = f"run the same command again with output_dir={folder}: it resumes from the last checkpoint"
            raise ConfigError(Problem(where, f"the run is {result['status']}", hint))
        stages = tuple(read_run(place) for place in stage_folders(folder, result.get("stages", ())))
        entered = read_run(folder / ENTERED) if config.get("entering") and not stages else None
        last = stages[-1:]
        suites = {file.stem: _json(file) for file in sorted((folder / FOLDER).glob("*.json"))}
        data = _json(folder / ARTIFACT)["data"] if (folder / ARTIFACT).is_file() else {}
        own = tuple(f"eval/{suite}/" for suite in suites)  # of a pipeline: a stage it shares may have been asked otherwise
        metrics = {name: value for stage in last for name, value in stage.metrics.items() if not name.startswith(own)}
        broken = {name: value for stage in last for name, value in stage.no_numbers.items() if not name.startswith(own)}
        metrics |= dict(_numbers(result["metrics"], ""))
        broken |= dict(_no_numbers(result["metrics"], ""))
        for suite, found in suites.items():
            broken |= (lost := dict(_no_numbers(found["metrics"], f"eval/{suite}/")))
            metrics = {name: value for name, value in metrics.items() if name not in lost}
            metrics |= _numbers(found["metrics"], f"eval/{suite}/")
        scores = {name: value for stage in last for name, value in stage.scores.items() if not name.startswith(own)} | kept_scores(folder)
        read_by = {name: value for stage in last for name, value in stage.suites.items()}
        read_by |= {name: _read_by(found) for name, found in suites.items()}
        run = Run(folder, config, result, metrics, broken, scores, data or (last[0].data if last else {}), read_by, stages, entered)
        if run.devices < 1 or run.seed < 0:
            raise ValueError(f"seed {run.seed} on {run.devices} devices")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError, pa.ArrowException) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(Problem(where, f"its files are broken: {reason}", "see config.yaml, result.json and eval/")) from error
    if stale := list(_stale(run)):
        raise ConfigError(stale)
    return run


def status_of(folder: Path) -> str:
    """How the run in a folder ended, as far as its result.json says."""
    try:
        return str(_json(folder / RESULT)["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return "not finished"


def _json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _numbers(metrics: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """Finite values by their whole name."""
    for name, value in decode(json.dumps(metrics)).items():
        if isinstance(value, int | float) and math.isfinite(value):
            yield prefix + name, float(value)


def _no_numbers(metrics: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """The others, as they are written."""
    for name, value in metrics.items():
        if value is not None and not any(_numbers({name: value}, "")):
            yield prefix + name, str(value)


def _read_by(suite: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation read: its settings that name data, and digests; and by which settings it measured."""
    settings, details = suite.get("settings", {}), suite.get("details", {})
    chosen = {name: settings[name] for name in ("data", "limit", "tasks", "num_fewshot", "format", "system", "compare") if name in settings}
    read = {**chosen, **{name: details[name] for name in ("digest", "examples", "left_out") if name in details}}
    return {**read, MEASURED_AS: suite.get(MEASURED_AS, settings)}


def _stale(run: Run) -> Iterator[Problem]:
    """Scores of single examples that do not make the run's metric, as where one of the files was replaced."""
    for metric, scores in run.scores.items():
        if metric in run.metrics and not np.isclose(scores.mean, run.metrics[metric], rtol=TOLERANCE, atol=1e-6):
            message = f"{metric} is {run.metrics[metric]:.6g}, but the examples kept in {FOLDER}/ make {scores.mean:.6g}"
            yield Problem(f"runs: {run.folder}", message, "evaluate it again: posttrain eval run=... suite=...")
