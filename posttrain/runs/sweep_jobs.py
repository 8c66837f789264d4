"""The runs of a sweep before they start: their names, the arms they belong to, their configurations, composed and checked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from posttrain.errors import ConfigError, Problem
from posttrain.runs import rules
from posttrain.runs.check import compose_and_check
from posttrain.runs.commands.table import Call
from posttrain.runs.group_config import quoted
from posttrain.runs.overrides import read

LONGEST_NAME = 100  # bytes
ALL = "all"  # the arm of a sweep over nothing but seeds


@dataclass(frozen=True)
class Planned:
    """One run before it is composed. name: its folder's, within the sweep's. arm: what it is compared as. lines: its overrides."""

    name: str
    arm: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One run of a sweep. name: its swept overrides. config: complete, with its own output_dir. arm: what it is compared as."""

    name: str
    overrides: tuple[str, ...]
    config: dict[str, Any]
    arm: str


def planned_of(combinations: Sequence[dict[str, str]]) -> list[Planned]:
    """The runs of a sweep by what is swept; what differs in the seed alone is one arm."""
    swept = [key for key in combinations[0] if len({job[key] for job in combinations}) > 1]
    names = job_names([tuple(job[key] for key in swept) for job in combinations]) if swept else list(map(str, range(len(combinations))))
    arms = job_names([tuple(job[key] for key in swept if key != "seed") for job in combinations])
    return [
        Planned(name, arm or ALL, tuple(line for key, line in job.items() if key != "output_dir"))
        for name, arm, job in zip(names, arms, combinations, strict=True)
    ]


def folder_is_one(lines: Sequence[str]) -> list[Problem]:
    """A sweep has one folder, with one of its own for each run in it."""
    read_lines = [(line, read(line)) for line in lines]
    return [
        Problem(line, "a sweep has one folder, in which each run gets its own", "output_dir=DIR")
        for line, found in read_lines
        if isinstance(found, Override) and found.key_or_group == "output_dir" and found.is_sweep_override()
    ]


def checked_jobs(
    planned: Sequence[Planned], call: Call, folder: Path, must_hold: Sequence[rules.Rule], *, arms: str | None = None
) -> tuple[list[Job], list[Problem]]:
    """Composes and checks every job; those that are right, and the problems of all others.

    arms: what the arms' names stand behind in the configuration; problems that only some arms have then name them.
    """
    jobs: list[Job] = []
    found: dict[Problem, list[str]] = {}
    for run in planned:
        try:
            jobs.append(checked_job(run, call, folder, must_hold))
        except ConfigError as error:
            for problem in error.problems:
                found.setdefault(problem, []).append(run.arm)
    if arms is None:
        return jobs, [*found]
    count = len({run.arm for run in planned})
    return jobs, [_of_arms(problem, list(dict.fromkeys(names)), count, arms) for problem, names in found.items()]


def _of_arms(problem: Problem, names: Sequence[str], count: int, arms: str) -> Problem:
    return problem if len(names) == count > 1 else replace(problem, where=f"{arms}.{', '.join(names)}: {problem.where}")


def checked_job(run: Planned, call: Call, folder: Path, must_hold: Sequence[rules.Rule]) -> Job:
    """One job of a sweep, composed and checked. Raises ConfigError with its problems."""
    lines = [*run.lines, f"output_dir={quoted(str(folder / run.name))}"]
    config = compose_and_check(lines, config_dirs=call.config_dirs, base=call.base, allow_targets=call.allow_targets, rules=must_hold)
    return Job(run.name, run.lines, config, run.arm)


def job_names(runs: Sequence[tuple[str, ...]]) -> list[str]:
    """A folder name for each run's swept overrides, another one for other overrides.

    Of several that would have the same name, the first keeps it, so that runs which are there are found by a sweep that has grown.
    """
    known: dict[tuple[str, ...], str] = {}
    for swept in runs:
        if swept not in known:
            name = job_name(swept)
            known[swept] = _with_hash(name, ",".join(swept)) if name in known.values() else name
    return [known[swept] for swept in runs]


def job_name(swept: Sequence[str]) -> str:
    """A folder name from the swept overrides: readable, without separators, at most LONGEST_NAME bytes."""
    name = re.sub(r"[^\w.=,+-]+", ".", ",".join(swept))
    return name if len(name.encode()) <= LONGEST_NAME else _with_hash(name, name)


def _with_hash(name: str, hashed: str) -> str:
    start = name.encode()[: LONGEST_NAME - 9].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(hashed.encode()).hexdigest()[:8]}"
