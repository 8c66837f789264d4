"""`-m`: one run for every combination. All are composed and checked before the first starts; SLURM or a launcher of Hydra's starts them."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from posttrain.errors import ConfigError, MissingExtra, Problem
from posttrain.runs import options, report, rules, suggest
from posttrain.runs.base_config import load_config
from posttrain.runs.check import compose_and_check
from posttrain.runs.commands.table import Call
from posttrain.runs.compose import hydra_config, quoted
from posttrain.runs.overrides import expand, parse
from posttrain.runs.slurm import launch as slurm
from posttrain.runs.slurm.follow import LeftRunning
from posttrain.runs.study.record import known_parent, write_study
from posttrain.runs.study.reuse import is_finished
from posttrain.runs.study.spec import Study
from posttrain.runs.sweep_record import JOBS, JobRecord, Outcome, SweepRecord
from posttrain.runs.sweep_table import table_of

LOCAL = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
RULES = {LOCAL: rules.HERE, slurm.TARGET: rules.CLUSTER}
JOB_KEY = "posttrain_job"
ALLOW_KEY = "posttrain_allow_targets"
LONGEST_NAME = 100
STOPPED = (130, 143)


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


def run_sweep(call: Call) -> int:
    """Runs all jobs, prints a table of them, and returns the worst exit code.

    Raises:
        ConfigError: with the problems of all jobs; nothing was started then.
    """
    folders = options.search_path(call.config_dirs)
    parsed = parse(call.overrides, options.groups(folders))
    task = [line for line in call.overrides if line not in parsed.hydra]
    combinations = expand(task, lambda group: [option.name for option in options.options(folders, group)])
    master = master_of(parsed.hydra, _common(combinations), folders)
    jobs, problems = checked_jobs(planned_of(combinations), call, Path(master.hydra.sweep.dir).absolute(), rules_of(master))
    if problems:
        raise ConfigError(problems)
    return run_jobs(jobs, call, master, folders)


def rules_of(master: DictConfig) -> Sequence[rules.Rule]:
    """What must hold for runs that the sweep's launcher starts."""
    return RULES.get(master.hydra.launcher._target_, rules.ELSEWHERE)


def run_jobs(jobs: Sequence[Job], call: Call, master: DictConfig, folders: Sequence[Path], study: Study | None = None) -> int:
    """Starts checked jobs where the launcher of `master` puts them; those of a study that are finished already are left as they are."""
    folder = Path(master.hydra.sweep.dir).absolute()
    pending = jobs if study is None else [job for job in jobs if not is_finished(job.config)]
    if master.hydra.launcher._target_ != slurm.TARGET or not pending:
        return _run(jobs, pending, call, folder, lambda record: _launch(record, pending, master, folders, call.allow_targets), study)
    requests = slurm.requests_of([_launcher_node(master, job) for job in pending])
    if requests[0].dry_run:
        slurm.show_scripts(requests, [job.name for job in pending], folder)
        return 0
    return _run(jobs, pending, call, folder, lambda record: slurm.run(requests, record, call.allow_targets), study)


def _run(
    jobs: Sequence[Job],
    pending: Sequence[Job],
    call: Call,
    folder: Path,
    launch: Callable[[SweepRecord], list[int]],
    study: Study | None,
) -> int:
    """Launches the pending jobs, written into the sweep's folder, as children of one tracking run, which is closed however they end.

    A user who stops waiting for SLURM leaves it open: jobs go on.
    """
    from posttrain.runs.tracking.sweep import finish_parent, start_parent

    told = jobs[0].config if study is None else {**jobs[0].config, "study": study.name}
    parent = (None if study is None else known_parent(folder)) or start_parent(told, call.overrides)
    write_study(folder, _folders_of(jobs), jobs[0].config, parent, study)
    status: Literal["finished", "stopped", "failed"] | None = "failed"
    try:
        children = [_child(job, parent, folder.name if study is None else study.name) for job in pending]
        codes = launch(_recorded(children, folder, parent)) if pending else []
        status = "failed" if any(codes) else "finished"
    except LeftRunning:
        status = None
        raise
    except KeyboardInterrupt:
        status = "stopped"
        raise
    finally:
        if parent is not None and status is not None:
            finish_parent(jobs[0].config, parent, status)
    ended = dict(zip((job.name for job in pending), codes, strict=True))
    rows = [(job.name, Path(job.config["output_dir"]), ended.get(job.name, 0)) for job in jobs]
    report.console().print(table_of(rows, folder))
    return max(codes, default=0)


def _folders_of(jobs: Sequence[Job]) -> dict[str, list[Path]]:
    """The folders of each arm's runs."""
    found: dict[str, list[Path]] = {}
    for job in jobs:
        found.setdefault(job.arm, []).append(Path(job.config["output_dir"]))
    return found


def _recorded(jobs: Sequence[Job], folder: Path, parent: str | None) -> SweepRecord:
    """Writes each job's config into the sweep's folder, and which jobs there are."""
    files = [_write_job(job, folder / JOBS / f"{number}.yaml") for number, job in enumerate(jobs)]
    entries = [JobRecord(job.name, Path(job.config["output_dir"]), file) for job, file in zip(jobs, files, strict=True)]
    for entry in entries:
        Outcome(entry.file).clear()
    (folder / JOBS / "closed").unlink(missing_ok=True)
    record = SweepRecord(folder, tuple(entries), jobs[0].config["tracking"], parent)
    record.write()
    return record


def _launcher_node(master: DictConfig, job: Job) -> dict[str, Any]:
    """The launcher's settings as the job's hardware fills them in."""
    own = copy.deepcopy(master)
    with open_dict(own):
        own.hardware = job.config["hardware"]
    node = cast(dict[str, Any], OmegaConf.to_container(own.hydra.launcher, resolve=True))
    if job.config["stages"] and node["_target_"] == slurm.TARGET:
        from posttrain.runs.pipeline.cluster import one_task

        return one_task(node, job.config)
    return node


def _common(combinations: Sequence[dict[str, str]]) -> list[str]:
    """Overrides that every job has."""
    first, *others = [list(job.values()) for job in combinations]
    return [line for line in first if all(line in other for other in others)]


def master_of(hydra_lines: Sequence[str], common: Sequence[str], folders: Sequence[Path]) -> DictConfig:
    """The config that describes the sweep itself: its folder and its launcher.

    Raises:
        ConfigError: another sweeper than the built-in one, or a launcher that is not there.
    """
    _require_plugin(hydra_lines)
    if problems := _unknown_launcher_keys(hydra_lines, folders):
        raise ConfigError(problems)
    output = [line.partition("=")[2] for line in common if line.startswith("output_dir=")]
    folder = [f"hydra.sweep.dir={output[-1]}"] if output else []
    master = hydra_config([], folders, extra=[*folder, *hydra_lines])
    if master.hydra.sweeper._target_ != SWEEPER:
        raise ConfigError(Problem("hydra/sweeper", "only the basic sweeper is supported", "leave hydra/sweeper out"))
    return master


def _require_plugin(hydra_lines: Sequence[str]) -> None:
    """Hydra's own submitit launchers come with their plugin."""
    for line in hydra_lines:
        key, _, name = line.partition("=")
        if key == "hydra/launcher" and name.startswith("submitit") and find_spec("hydra_plugins.hydra_submitit_launcher") is None:
            raise MissingExtra(line, "slurm")


def _unknown_launcher_keys(hydra_lines: Sequence[str], folders: Sequence[Path]) -> list[Problem]:
    """Keys that the chosen launcher does not have, with the nearest one; Hydra itself would advise to add them."""
    setting = [line for line in hydra_lines if line.startswith("hydra.launcher.")]
    if not setting:
        return []
    known = [f"hydra.launcher.{key}" for key in hydra_config([], folders, extra=[*set(hydra_lines) - set(setting)]).hydra.launcher]
    keys = {line: ".".join(line.partition("=")[0].split(".")[:3]) for line in setting}
    return [Problem(line, f"the launcher has no key '{key}'", suggest.hint(key, known)) for line, key in keys.items() if key not in known]


def planned_of(combinations: Sequence[dict[str, str]]) -> list[Planned]:
    """The runs of a sweep by what is swept; what differs in the seed alone is one arm."""
    swept = [key for key in combinations[0] if len({job[key] for job in combinations}) > 1]
    planned = []
    for number, combination in enumerate(combinations):
        name = job_name([combination[key] for key in swept]) if swept else str(number)
        arm = job_name([combination[key] for key in swept if key != "seed"]) or "all"
        planned.append(Planned(name, arm, tuple(line for key, line in combination.items() if key != "output_dir")))
    return planned


def checked_jobs(planned: Sequence[Planned], call: Call, folder: Path, must_hold: Sequence[rules.Rule]) -> tuple[list[Job], list[Problem]]:
    """Composes and checks every job; those that are right, and the problems of all others."""
    jobs: list[Job] = []
    problems: list[Problem] = []
    for run in planned:
        lines = [*run.lines, f"output_dir={quoted(str(folder / run.name))}"]
        try:
            config = compose_and_check(
                lines, config_dirs=call.config_dirs, base=call.base, allow_targets=call.allow_targets, rules=must_hold
            )
        except ConfigError as error:
            problems += error.problems
            continue
        jobs.append(Job(run.name, run.lines, config, run.arm))
    return jobs, list(dict.fromkeys(problems))


def job_name(swept: Sequence[str]) -> str:
    """A folder name from the swept overrides: readable, without separators, short."""
    name = re.sub(r"[^\w.=,+-]+", ".", ",".join(swept))
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _child(job: Job, parent: str | None, study: str) -> Job:
    """The same job as a child of the sweep's tracking run, where there is one."""
    if parent is None:
        return job
    told = {"parent_run_id": parent, "tags": {"study": study, "arm": job.arm}, "run_name": job.name}
    return replace(job, config=job.config | {"tracking": job.config["tracking"] | told})


def _launch(
    record: SweepRecord, jobs: Sequence[Job], master: DictConfig, folders: Sequence[Path], allow_targets: Sequence[str]
) -> list[int]:
    """Hands the jobs to Hydra's launcher; each gets only the path of its finished config. Returns their exit codes."""
    sweep_dir = str(record.folder)
    with open_dict(master):
        master.hydra.sweep.dir = sweep_dir
        master.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(sweep_dir)}")
        master.hardware = jobs[0].config["hardware"]  # launchers ask for what `hardware` says
    context = HydraContext(config_loader=ConfigLoaderImpl(_search_path(folders)), callbacks=Callbacks())
    launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=run_job_file, config=master)
    allow = f"++{ALLOW_KEY}=[{','.join(map(quoted, allow_targets))}]"
    results = launcher.launch([[f"++{JOB_KEY}={quoted(str(job.file))}", allow] for job in record.jobs], initial_job_idx=0)
    return [_exit_code(result) for result in results]


def _search_path(folders: Sequence[Path]) -> Any:
    path = create_config_search_path(str(folders[0]))
    for folder in folders[1:]:
        path.append("user", f"file://{folder}")
    return path


def _write_job(job: Job, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(job.config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return file


def run_job_file(config: DictConfig) -> int:
    """One job, wherever the launcher has put it; returns its exit code. A stop signal ends the whole sweep."""
    from posttrain.runs.job import run_isolated

    code = run_isolated(load_config(Path(config[JOB_KEY])), allow_targets=list(config[ALLOW_KEY]))
    if code in STOPPED:
        raise KeyboardInterrupt
    return code


def _exit_code(result: JobReturn) -> int:
    """A job's exit code; 1 where the launcher itself failed to run it."""
    return int(result.return_value) if result.status is JobStatus.COMPLETED else 1
