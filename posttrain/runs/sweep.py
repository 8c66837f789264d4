"""`-m`: one run for every combination. All are composed and checked before the first starts; SLURM or a launcher of Hydra's starts them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from omegaconf import DictConfig, OmegaConf, open_dict

from posttrain.errors import ConfigError, MissingExtra, Problem
from posttrain.runs import options, report, rules, suggest
from posttrain.runs.commands.table import Call
from posttrain.runs.forking.client import serving_runs
from posttrain.runs.group_config import hydra_config
from posttrain.runs.overrides import expand, parse
from posttrain.runs.parallel import launch as parallel
from posttrain.runs.resume import of_command
from posttrain.runs.search import settings
from posttrain.runs.slurm import launch as slurm
from posttrain.runs.slurm.chain import Wish
from posttrain.runs.slurm.live import Live, live_in
from posttrain.runs.study.record import known_parent, write_study
from posttrain.runs.study.reuse import is_finished
from posttrain.runs.study.spec import Study
from posttrain.runs.sweep_grown import Earlier, earlier_runs, grown
from posttrain.runs.sweep_jobs import Job, Planned, checked_job, checked_jobs, folder_is_one, planned_of
from posttrain.runs.sweep_launch import LOCAL, launch_jobs
from posttrain.runs.sweep_record import SweepRecord, jobs_so_far, read_record, stages_so_far
from posttrain.runs.sweep_recording import recorded
from posttrain.runs.sweep_table import table_of
from posttrain.runs.tracking.sync import complete

SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
RULES = {LOCAL: rules.HERE, parallel.TARGET: rules.HERE, slurm.TARGET: rules.CLUSTER}


def run_sweep(call: Call) -> int:
    """Runs all jobs, prints a table of them, and returns the worst exit code. Raises ConfigError with the problems of all jobs, and starts
    none then."""
    folders = options.search_path(call.config_dirs)
    parsed = parse(call.overrides, options.groups(folders))
    task = [line for line in call.overrides if line not in parsed.hydra]
    if problems := folder_is_one(task):
        raise ConfigError(problems)
    if _searches(parsed.hydra, folders):
        return _search(call, task, parsed.hydra, folders)
    combinations = expand(task, lambda group: [option.name for option in options.options(folders, group)])
    master = master_of(parsed.hydra, _common(combinations), folders)
    folder = Path(master.hydra.sweep.dir).absolute()
    jobs, problems = checked_jobs(planned_of(combinations), call, folder, rules_of(master))
    found = grown(jobs, earlier_runs(folder))
    if problems := [*problems, *found.problems]:
        raise ConfigError(problems)
    return run_jobs(found.jobs, call, master, folders, kept=found.kept)


def rules_of(master: DictConfig) -> Sequence[rules.Rule]:
    """What must hold for runs that the sweep's launcher starts."""
    return RULES.get(master.hydra.launcher._target_, rules.ELSEWHERE)


def run_jobs(
    jobs: Sequence[Job],
    call: Call,
    master: DictConfig,
    folders: Sequence[Path],
    study: Study | None = None,
    kept: Sequence[Earlier] = (),
) -> int:
    """Starts checked jobs where the launcher of `master` puts them; those that are finished already are left as they are.

    kept: runs of earlier commands, which stay in the folder's record.
    """
    folder, command = Path(master.hydra.sweep.dir).absolute(), uuid4().hex
    jobs = [replace(job, config=of_command(job.config, command)) for job in jobs]
    pending = [job for job in jobs if not is_finished(job.config)]
    if master.hydra.launcher._target_ != slurm.TARGET or not pending:
        launch = partial(launch_jobs, jobs=pending, master=master, folders=folders, allow_targets=call.allow_targets, everything=jobs)
        with serving_runs([job.config for job in pending]) if _is_here(master) else nullcontext():
            return _run(jobs, pending, call, folder, launch, study, kept)
    wishes = _wishes(master, pending)
    if wishes[0].requests[0].dry_run:
        slurm.show_scripts(wishes, folder)
        return 0
    live = live_in(folder)
    return _run(jobs, pending, call, folder, partial(_submit, wishes, allow_targets=call.allow_targets, live=live), study, kept, live)


def _is_here(master: DictConfig) -> bool:
    """Whether the runs are processes below this one."""
    return master.hydra.launcher._target_ in (LOCAL, parallel.TARGET)


def _wishes(master: DictConfig, jobs: Sequence[Job]) -> list[Wish]:
    """What each job asks the cluster for. Raises ConfigError for what is wrong with that."""
    nodes = [_launcher_nodes(master, job) for job in jobs]
    requests = iter(slurm.requests_of([node for some in nodes for node in some]))
    return [Wish(job.name, job.config, [next(requests) for _ in some]) for job, some in zip(jobs, nodes, strict=True)]


def _submit(wishes: Sequence[Wish], record: SweepRecord, *, allow_targets: Sequence[str], live: Live) -> list[int]:
    """Submits the recorded jobs, and waits for them. live: what is not to be submitted again."""
    told = [replace(wish, slurm_id=live.id_of(job)) for wish, job in zip(wishes, record.jobs, strict=True)]
    return slurm.run(told, record, allow_targets, live.ids)


def _searches(hydra_lines: Sequence[str], folders: Sequence[Path]) -> bool:
    """Whether the line asks for a search. What is wrong with Hydra's keys is told later."""
    chosen = [line for line in hydra_lines if line.startswith("hydra/sweeper=")]
    return bool(chosen) and hydra_config([], folders, extra=chosen).hydra.sweeper._target_ == settings.TARGET


def _search(call: Call, task: Sequence[str], hydra_lines: Sequence[str], folders: Sequence[Path]) -> int:
    """A sweep whose runs are not known before: trials are checked, recorded and launched as they come."""
    from posttrain.runs.search.command import Sweep, run_search
    from posttrain.runs.search.space import space_of

    command = uuid4().hex
    space = space_of(task, lambda group: [option.name for option in options.options(folders, group)])
    master = master_of(hydra_lines, list(space.fixed.values()), folders)
    target, folder = master.hydra.launcher._target_, Path(master.hydra.sweep.dir).absolute()
    must_hold = rules_of(master)

    def check(name: str, combination: Mapping[str, str]) -> Job:
        lines = tuple(line for key, line in combination.items() if key != "output_dir")
        job = checked_job(Planned(name, name, lines), call, folder, must_hold)
        return replace(job, config=of_command(job.config, command))

    def launch(jobs: Sequence[Job]) -> list[int]:
        wishes = _wishes(master, jobs) if target == slurm.TARGET else []
        live = live_in(folder) if wishes else Live()
        earlier, stages = jobs_so_far(folder), stages_so_far(folder)
        record = recorded(jobs, folder, None, live, first=len(earlier))
        record.beside(earlier, stages).write()
        if not wishes:
            served.enter_context(serving_runs([job.config for job in jobs], more=True) if _is_here(master) else nullcontext())
            return launch_jobs(record, jobs, copy.deepcopy(master), folders, call.allow_targets)
        try:
            return _submit(wishes, record, allow_targets=call.allow_targets, live=live)
        finally:
            read_record(folder).beside(earlier, stages).write()

    node = cast(dict[str, Any], OmegaConf.to_container(master.hydra.sweeper, resolve=True))
    with ExitStack() as served:
        sweep = Sweep(folder, call.overrides, call.config_dirs, call.base is None, check, launch, partial(_child, study=folder.name))
        return run_search(node, space, sweep)


def _run(
    jobs: Sequence[Job],
    pending: Sequence[Job],
    call: Call,
    folder: Path,
    launch: Callable[[SweepRecord], list[int]],
    study: Study | None,
    kept: Sequence[Earlier],
    live: Live = Live(),  # noqa: B008 - frozen
) -> int:
    """Launches the pending jobs, written into the sweep's folder, as children of one tracking run, which is closed however they end."""
    from posttrain.runs.tracking.sweep import parent_open, start_parent

    told = jobs[0].config if study is None else {**jobs[0].config, "study": study.name}
    parent = start_parent(told, call.overrides, folder) if pending else known_parent(folder)
    configs = {run.folder: run.config for run in kept} | {Path(job.config["output_dir"]): job.config for job in jobs}
    write_study(folder, _folders_of(jobs, kept), list(configs.values()), parent, study)
    for job in (job for job in jobs if job not in pending):
        complete(Path(job.config["output_dir"]), "finished")
    with parent_open(jobs[0].config, parent) as ends:
        children = [_child(job, parent, folder.name if study is None else study.name) for job in pending]
        codes = launch(recorded(children, folder, parent, live)) if pending else []
        ends("failed" if any(codes) else "finished")
    ended = dict(zip((job.name for job in pending), codes, strict=True))
    rows = [(job.name, Path(job.config["output_dir"]), ended.get(job.name, 0)) for job in jobs]
    report.console().print(table_of(rows, folder))
    return max(codes, default=0)


def _folders_of(jobs: Sequence[Job], kept: Sequence[Earlier]) -> dict[str, list[Path]]:
    """The folders of each arm's runs, those of earlier commands first."""
    found: dict[str, dict[Path, None]] = {}
    for arm, folder in [*((run.arm, run.folder) for run in kept), *((job.arm, Path(job.config["output_dir"])) for job in jobs)]:
        found.setdefault(arm, {})[folder] = None
    return {arm: list(folders) for arm, folders in found.items()}


def _launcher_nodes(master: DictConfig, job: Job) -> list[dict[str, Any]]:
    """The launcher's settings as the job's hardware fills them in; of a pipeline in SLURM, as each stage's does."""
    own = _launcher_node(master, job.config)
    if not job.config["stages"] or own["_target_"] != slurm.TARGET:
        return [own]
    if own["stages"] != "one_job":
        return [_launcher_node(master, stage["config"]) for stage in job.config["stages"]]
    from posttrain.runs.pipeline.cluster import one_task

    return [one_task(own, job.config)]


def _launcher_node(master: DictConfig, config: Mapping[str, Any]) -> dict[str, Any]:
    own = copy.deepcopy(master)
    with open_dict(own):
        own.hardware = config["hardware"]
    return cast(dict[str, Any], OmegaConf.to_container(own.hydra.launcher, resolve=True))


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
    if problems := [*_unknown_keys(hydra_lines, folders, "launcher"), *_unknown_keys(hydra_lines, folders, "sweeper")]:
        raise ConfigError(problems)
    output = [line.partition("=")[2] for line in common if line.startswith("output_dir=")]
    folder = [f"hydra.sweep.dir={output[-1]}"] if output else []
    master = hydra_config([], folders, extra=[*folder, *hydra_lines])
    if master.hydra.sweeper._target_ not in (SWEEPER, settings.TARGET):
        raise ConfigError(Problem("hydra/sweeper", "there are the basic sweeper and optuna", "hydra/sweeper=optuna, or leave it out"))
    if master.hydra.launcher._target_ == parallel.TARGET:
        parallel.Parallel.of(master.hydra.launcher)
    return master


def _require_plugin(hydra_lines: Sequence[str]) -> None:
    """Hydra's own submitit launchers come with their plugin."""
    for line in hydra_lines:
        key, _, name = line.partition("=")
        if key == "hydra/launcher" and name.startswith("submitit") and find_spec("hydra_plugins.hydra_submitit_launcher") is None:
            raise MissingExtra(line, "slurm")


def _unknown_keys(hydra_lines: Sequence[str], folders: Sequence[Path], part: str) -> list[Problem]:
    """Keys that the chosen launcher or sweeper does not have, with the nearest one; Hydra itself would advise to add them."""
    setting = [line for line in hydra_lines if line.startswith(f"hydra.{part}.")]
    if not setting:
        return []
    chosen = [line for line in hydra_lines if not line.startswith(("hydra.launcher.", "hydra.sweeper."))]
    known = [f"hydra.{part}.{key}" for key in hydra_config([], folders, extra=chosen).hydra[part]]
    keys = ((line, ".".join(line.partition("=")[0].split(".")[:3])) for line in setting)
    return [Problem(line, f"the {part} has no key '{key}'", suggest.hint(key, known)) for line, key in keys if key not in known]


def _child(job: Job, parent: str | None, study: str) -> Job:
    """The same job as a child of the sweep's tracking run, where there is one."""
    if parent is None:
        return job
    told = {"parent_run_id": parent, "tags": {"study": study, "arm": job.arm}, "run_name": job.name}
    return replace(job, config=job.config | {"tracking": job.config["tracking"] | told})
