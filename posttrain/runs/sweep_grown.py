"""A sweep that grows: what its folder holds is found again by what it is, whatever the keys that this command happens to sweep."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.errors import Problem
from posttrain.runs.base_config import load_config
from posttrain.runs.comparison.settings import settings_of, text
from posttrain.runs.comparison.study import FILE, read_study
from posttrain.runs.resume import CONFIG, FREE, OF_NUMBERS, is_below
from posttrain.runs.sweep_jobs import ALL, Job, job_name
from posttrain.runs.sweep_record import jobs_so_far

HINT = "give the same values to add to them, another output_dir, or resume=never"
OF_A_STAGE = re.compile(r"stages\.[^.]+\.")


@dataclass(frozen=True)
class Earlier:
    """A run that an earlier command put into the sweep's folder. config: as it was started with."""

    arm: str
    folder: Path
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Grown:
    """jobs: of this command, under the names that their runs and arms have in the folder. kept: the earlier runs, those among the jobs
    too. problems: arms of the folder that this command means otherwise."""

    jobs: list[Job]
    kept: list[Earlier]
    problems: list[Problem]


def earlier_runs(folder: Path) -> list[Earlier]:
    """The runs that the folder's study.json names, as far as they are still there, or wait in the cluster. Raises ConfigError for a broken
    record."""
    if not (folder / FILE).is_file():
        return []
    waiting = {job.folder: job.file for job in jobs_so_far(folder)}
    places = {run: (name, run / CONFIG) for name, runs in read_study(folder).arms.items() for run in runs}
    known = {run: (name, file if file.is_file() else waiting.get(run, file)) for run, (name, file) in places.items()}
    return [Earlier(name, run, load_config(file)) for run, (name, file) in known.items() if file.is_file()]


def grown(jobs: Sequence[Job], earlier: Sequence[Earlier]) -> Grown:
    """A sweep's jobs beside what its folder holds already: a run that is there is the same run again, and an arm the same arm."""
    first = {job.arm: job for job in reversed(jobs)}
    of_settings = {text(settings_of(run.config)): run.arm for run in reversed(earlier)}
    arms = {arm: _arm_of(job, earlier, of_settings) for arm, job in first.items()}
    more_than_all = {there: now for now, there in arms.items() if there == ALL != now}  # it is no longer the only one
    named = [replace(job, arm=more_than_all.get(arms[job.arm], arms[job.arm])) for job in jobs]
    known = [replace(run, arm=more_than_all.get(run.arm, run.arm)) for run in earlier]
    now = {job.arm: job.config for job in named}
    other = {(run.arm, run.folder): keys for run in known if run.arm in now and (keys := changed(run.config, now[run.arm]))}
    fresh = {job.arm for job in named if job.config["resume"] == "never"}
    told = {arm: keys for (arm, _), keys in other.items() if arm not in fresh}
    problems = [Problem("output_dir", _differing(arm, keys), HINT) for arm, keys in told.items()]
    return Grown([_placed(job, known) for job in named], [run for run in known if (run.arm, run.folder) not in other], problems)


def _differing(arm: str, keys: Sequence[str]) -> str:
    return f"the runs of {arm} that are there were made with other {', '.join(keys[:5])}{' and more' if len(keys) > 5 else ''}"


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Keys but the seed in which two runs differ so that their numbers would; of a pipeline's stages by their names."""
    old, new = settings_of(before), settings_of(now)
    return [key for key in sorted(old.keys() | new.keys()) if _counts(key) and text(old.get(key)) != text(new.get(key))]


def _counts(key: str) -> bool:
    own = OF_A_STAGE.sub("", key, count=1)
    return not is_below(own, FREE) or is_below(own, OF_NUMBERS)


def _arm_of(job: Job, earlier: Sequence[Earlier], of_settings: Mapping[str, str]) -> str:
    """The name that the job's arm has in the folder, or its own where it is new there. of_settings: names by what the arms are."""
    same = [run for run in earlier if run.arm == job.arm and not changed(run.config, job.config)]
    return job.arm if same else of_settings.get(text(settings_of(job.config)), job.arm)


def _placed(job: Job, known: Sequence[Earlier]) -> Job:
    """The job in the folder that its run has; a new one in one that no other run has."""
    seed, there = job.config["seed"], {run.folder.name for run in known}
    same = [run.folder.name for run in known if run.arm == job.arm and run.config["seed"] == seed]
    new = f"seed={seed}" if job.name.isdecimal() and there else job.name
    name = same[0] if same else job_name([new, f"seed={seed}"]) if new in there else new
    folder = Path(job.config["output_dir"]).parent / (job.name if job.name in same else name)
    return replace(job, name=folder.name, config={**job.config, "output_dir": str(folder)})
