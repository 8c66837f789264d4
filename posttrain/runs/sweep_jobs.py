"""The runs of a sweep before they start: their names, the arms they belong to, their configurations, composed and checked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.runs import rules
from posttrain.runs.check import compose_and_check
from posttrain.runs.commands.table import Call
from posttrain.runs.compose import quoted

LONGEST_NAME = 100


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
    planned = []
    for number, combination in enumerate(combinations):
        name = job_name([combination[key] for key in swept]) if swept else str(number)
        arm = job_name([combination[key] for key in swept if key != "seed"]) or "all"
        planned.append(Planned(name, arm, tuple(line for key, line in combination.items() if key != "output_dir")))
    return planned


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


def job_name(swept: Sequence[str]) -> str:
    """A folder name from the swept overrides: readable, without separators, short."""
    name = re.sub(r"[^\w.=,+-]+", ".", ",".join(swept))
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
