"""`hydra/launcher=parallel`: starts the runs of a sweep at the same time on this machine, and waits for them."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.runs.forking.client import Process, start_captured
from posttrain.runs.job import STAGE, isolated_command
from posttrain.runs.parallel.places import Need, Places
from posttrain.runs.processes import POLL_SECONDS, WITH_PARENT, heard_until_gone, pass_on, shell_code
from posttrain.runs.signals import HANDLED

TARGET = "posttrain.runs.parallel.launch.Parallel"
NARROW = 60
STOPPED = tuple(128 + number for number in HANDLED)


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """The launcher's options. n_jobs: runs at once, at most; None: as many as there are devices for."""

    n_jobs: int | None = None

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> Parallel:
        """From the launcher's node. Raises ConfigError for what is wrong with it."""
        jobs = node.get("n_jobs")
        if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1):
            message = f"expected a whole number of at least 1, or null, got {jobs!r}"
            raise ConfigError(Problem("hydra.launcher.n_jobs", message, "the runs at once; null for as many as there are devices for"))
        return cls(n_jobs=jobs)


@dataclass(frozen=True)
class Task:
    """A process to be run. name: what its lines begin with."""

    name: str
    command: Sequence[str]
    need: Need


def run(
    named: Mapping[str, dict[str, Any]], everything: Sequence[dict[str, Any]], launcher: Parallel, allow_targets: Sequence[str]
) -> list[int]:
    """Runs each config in a process of its own; returns their exit codes. A first stage that several share is made beforehand.

    named: the configs to run, by name. everything: those and the ones of runs that have ended already.
    Raises KeyboardInterrupt where a stop signal came, to this process or to one of them: the others were stopped by it as well, or have
    ended by themselves, and what had not begun does not begin.
    """
    shared = [
        Task(f"{name}/{stage}", [*isolated_command(config, allow_targets), f"{STAGE}0"], _first_need(config))
        for name, config, stage in _shared_firsts(named)
    ]
    for task in (task for task in shared if not task.need.gpus):
        run_tasks([task], Places([task.need], 1))  # by itself, on all cores
    if on_gpus := [task for task in shared if task.need.gpus]:
        run_tasks(on_gpus, Places([task.need for task in on_gpus], launcher.n_jobs))
    # whoever needs a stage that failed tries it again, and says so
    tasks = [Task(name, isolated_command(config, allow_targets), Need.of(config)) for name, config in named.items()]
    return run_tasks(tasks, Places([Need.of(config) for config in everything], launcher.n_jobs))


def _first_need(config: Mapping[str, Any]) -> Need:
    return Need.of({"stages": config["stages"][:1]})


def _shared_firsts(named: Mapping[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any], str]]:
    """One pipeline, by name, for each first stage that several need and that is not made yet; with the stage's name."""
    from posttrain.runs.pipeline.chained import is_made
    from posttrain.runs.pipeline.wanted import likely_keys

    needing: dict[str, list[str]] = {}
    for name, config in named.items():
        if config["stages"] and config["resume"] != "never":  # such a command makes one for itself, and shares it in its own way
            needing.setdefault(likely_keys(config)[0], []).append(name)
    firsts = [(key, names[0], named[names[0]]) for key, names in needing.items() if len(names) > 1]
    return [(name, config, config["stages"][0]["name"]) for key, name, config in firsts if not is_made(config, 0, key)]


def run_tasks(tasks: Sequence[Task], places: Places) -> list[int]:
    """Runs the tasks in order, as many at once as there is place for; returns their exit codes. Raises KeyboardInterrupt as `run` does."""
    waiting, codes = list(range(len(tasks))), dict[int, int]()
    running: dict[int, Process] = {}
    started: list[Process] = []
    readers: list[threading.Thread] = []
    passed_on = 0
    with heard_until_gone(started) as heard:
        while running or (waiting and not heard and not _stopped(codes)):
            while waiting and not heard and not _stopped(codes) and places.take(waiting[0], tasks[waiting[0]].need):
                number = waiting.pop(0)
                process, reader = _start(tasks[number], places.environment(number, os.environ))
                running[number] = process
                started.append(process)
                readers.append(reader)
            while passed_on < len(heard):  # here, not as it comes: that may be while a process begins
                pass_on(heard[passed_on], running.values())
                passed_on += 1
            for number, process in list(running.items()):
                if (code := process.poll()) is not None:
                    codes[number] = shell_code(code)
                    del running[number]
                    places.leave(number)
            time.sleep(POLL_SECONDS)
        for reader in readers:
            reader.join(timeout=5)
    if heard or _stopped(codes):
        raise KeyboardInterrupt
    return [codes[number] for number in range(len(tasks))]


def _stopped(codes: Mapping[int, int]) -> bool:
    """Whether somebody stopped one of them: the sweep ends then, as it does where its runs are made one after the other."""
    return any(code in STOPPED for code in codes.values())


def _start(task: Task, environment: Mapping[str, str]) -> tuple[Process, threading.Thread]:
    begin = f"{task.name} | "
    columns = str(max(NARROW, shutil.get_terminal_size((200, 24)).columns - len(begin)))
    process = start_captured(task.command, {**environment, WITH_PARENT: "1", "COLUMNS": columns})
    reader = threading.Thread(target=_pass_on, args=(process, begin), daemon=True)
    reader.start()
    return process, reader


def _pass_on(process: Process, begin: str) -> None:
    """Prints what the process writes, each line after its name, and nothing of lines half written."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            text = line.decode(errors="replace").rstrip("\n").rsplit("\r", 1)[-1]
            sys.stdout.write(f"{begin}{text}\n" if text else "\n")
            sys.stdout.flush()
