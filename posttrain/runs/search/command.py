"""The search itself: ask, run, tell, until there are enough trials."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from posttrain.errors import ConfigError, Problem, after_start
from posttrain.runs import report, suggest
from posttrain.runs.search.best import write_best
from posttrain.runs.search.settings import goal, settings_of
from posttrain.runs.search.space import Space
from posttrain.runs.search.store import Store, open_store
from posttrain.runs.study.reuse import is_finished

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from posttrain.runs.sweep_jobs import Job

SHOWN = 10
Check = Callable[[str, Mapping[str, str]], "Job"]
Launch = Callable[[Sequence["Job"]], list[int]]


@dataclass(frozen=True)
class Sweep:
    """What a search needs of the sweep around it.

    folder: the sweep's. overrides: the command line. config_dirs, whole: where groups come from; whole: the line starts from the defaults.
    check: name and overrides by key -> a job whose config is right. launch: runs jobs, returns their exit codes. child: a job under a
    tracking run.
    """

    folder: Path
    overrides: Sequence[str]
    config_dirs: Sequence[str]
    whole: bool
    check: Check
    launch: Launch
    child: Callable[[Job, str | None], Job]


def run_search(node: Mapping[str, Any], space: Space, sweep: Sweep) -> int:
    """Runs the trials that are missing, prints the best, writes its experiment file; 1 where no trial gave a value.

    node: the `hydra.sweeper` node. Raises ConfigError before anything starts for what is wrong at the ends of what is searched; after the
    first trial where it has not measured the metric.
    """
    search = settings_of(node)
    first = _checked_corners(space, sweep)
    metric, lower = goal(search, first.config)
    store = open_store(sweep.folder, search, space, metric, lower=lower)
    _tracked(store, sweep, first, metric)
    found = store.finished()
    _show(store, metric, found, sweep.folder)
    if not found:
        return 1
    _write_best(found[0], store, sweep, metric)
    return 0


def _checked_corners(space: Space, sweep: Sweep) -> Job:
    """The first corner as a job, when all can be composed. Raises ConfigError with the problems of all."""
    jobs: list[Job] = []
    problems: list[Problem] = []
    for number, job in enumerate(space.corners()):
        try:
            jobs.append(sweep.check(f"corner-{number}", job))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return jobs[0]


def _tracked(store: Store, sweep: Sweep, first: Job, metric: str) -> None:
    """All trials as children of one tracking run, the same when a search goes on."""
    from posttrain.runs.tracking.sweep import parent_open, start_parent

    if store.count >= store.search.n_trials and not store.begun():
        return
    parent = start_parent(first.config, sweep.overrides, sweep.folder)
    with parent_open(first.config, parent) as ends:
        _trials(store, sweep, metric, parent)
        ends("finished" if store.finished() else "failed")


def _trials(store: Store, sweep: Sweep, metric: str, parent: str | None) -> None:
    """Those that had begun first; then new ones, n_jobs at a time."""
    batch = store.begun()
    while batch or store.count < store.search.n_trials:
        if not batch:
            batch = [store.ask() for _ in range(min(store.search.n_jobs, store.search.n_trials - store.count))]
        _run(batch, store, sweep, metric, parent)
        batch = []


def _run(batch: Sequence[FrozenTrial], store: Store, sweep: Sweep, metric: str, parent: str | None) -> None:
    """Runs trials and keeps what they came to. Raises ConfigError where a trial's folder holds a run of another configuration."""
    jobs: list[tuple[int, Job]] = []
    for trial in batch:
        try:
            job = sweep.check(name_of(trial, store.space), store.space.job(trial.params))
            jobs.append((trial.number, sweep.child(job, parent)))
        except ConfigError as error:  # at its ends each key was right by itself
            report.show(error.problems, started=True)
            store.tell(trial.number, None)
    ended = [job for _, job in jobs if is_finished(job.config)]  # just before an earlier process was killed
    left = [job for _, job in jobs if job not in ended]
    codes = dict(zip([job.name for job in left], sweep.launch(left) if left else [], strict=True))
    with after_start():
        for number, job in jobs:
            store.tell(number, None if codes.get(job.name) else _value(job, metric))


def name_of(trial: FrozenTrial, space: Space) -> str:
    """The folder of a trial: its number, and what was tried, rounded."""
    from posttrain.runs.sweep_jobs import job_name

    tried = [
        f"{one.key}={value:.4g}" if isinstance(value := trial.params[one.key], float) else one.line(value) for one in space.dimensions
    ]  # fmt: skip
    return job_name([f"trial={trial.number}", *tried])


def _result(job: Job) -> dict[str, Any]:
    """What a finished run says of itself; empty for any other."""
    file = Path(job.config["output_dir"]) / "result.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found if found.get("status") == "finished" else {}


def _value(job: Job, metric: str) -> float | None:
    """The metric of a finished run; None where it failed or the value is no number. Raises ConfigError where it measured no such metric."""
    result = _result(job)
    if not result:
        return None
    metrics = result["metrics"]
    if metric not in metrics:
        raise ConfigError(Problem(f"hydra.sweeper.metric={metric}", "no run measures that", suggest.hint(metric, sorted(metrics), most=40)))
    value = metrics[metric]
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _show(store: Store, metric: str, found: Sequence[FrozenTrial], folder: Path) -> None:
    """The best trials."""
    console = report.console()
    keys = [one.key for one in store.space.dimensions]
    table = Table("trial", metric, *map(escape, keys), title=f"the best of {store.count} trials", title_justify="left", box=None)
    for trial in found[:SHOWN]:
        tried = [one.line(trial.params[one.key]).partition("=")[2] for one in store.space.dimensions]
        table.add_row(str(trial.number), f"{trial.value:.6g}", *map(escape, tried))
    console.print(table)
    if lost := store.count - len(found):
        console.print(f"{lost} trials gave no value", markup=False)
    console.print(f"all trials: {folder}", markup=False, soft_wrap=True)


def _write_best(trial: FrozenTrial, store: Store, sweep: Sweep, metric: str) -> None:
    console = report.console()
    job = sweep.check(name_of(trial, store.space), store.space.job(trial.params))
    comment = f"The best of {store.count} trials of a search: {metric} = {trial.value:.6g} in trial {trial.number}"
    folders = "".join(f"--config-dir {folder} " for folder in sweep.config_dirs)
    file = write_best(job.overrides, sweep.folder, sweep.config_dirs, comment=comment) if sweep.whole else None
    if file is None:
        again = f"--config {Path(job.config['output_dir']) / 'config.yaml'}"
        console.print(
            f"the best again (no experiment file can say all of it): posttrain {again} output_dir=...", markup=False, soft_wrap=True
        )
        return
    console.print(f"the best again: posttrain {folders}--config-dir {file.parents[1]} experiment={file.stem}", markup=False, soft_wrap=True)
