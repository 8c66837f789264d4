"""Starts the runs of a sweep: at the same time here, or through a launcher of Hydra's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from posttrain.runs.base_config import load_config
from posttrain.runs.group_config import quoted
from posttrain.runs.parallel import launch as parallel
from posttrain.runs.signals import Stopped, stop_on_signals
from posttrain.runs.sweep_jobs import Job
from posttrain.runs.sweep_record import SweepRecord

JOB_KEY = "posttrain_job"
ALLOW_KEY = "posttrain_allow_targets"
STOPPED = (130, 143)
LOCAL = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"  # in this process, each run in one of its own


def launch_jobs(
    record: SweepRecord,
    jobs: Sequence[Job],
    master: DictConfig,
    folders: Sequence[Path],
    allow_targets: Sequence[str],
    everything: Sequence[Job] = (),
) -> list[int]:
    """Starts the jobs here, or hands them to a launcher of Hydra's, each with the path of its finished config; returns their exit codes.

    everything: jobs and those that have ended before, where there are such.
    """
    if master.hydra.launcher._target_ == parallel.TARGET:
        pending = {job.name: load_config(entry.file) for job, entry in zip(jobs, record.jobs, strict=True)}
        return parallel.run(pending, [job.config for job in everything or jobs], parallel.Parallel.of(master.hydra.launcher), allow_targets)
    with open_dict(master):
        master.hydra.sweep.dir = str(record.folder)
        master.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(str(record.folder))}")
        master.hardware = jobs[0].config["hardware"]  # launchers ask for what `hardware` says
    context = HydraContext(config_loader=ConfigLoaderImpl(_search_path(folders)), callbacks=Callbacks())
    launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=run_job_file, config=master)
    allow = f"++{ALLOW_KEY}=[{','.join(map(quoted, allow_targets))}]"
    lines = [[f"++{JOB_KEY}={quoted(str(job.file))}", allow] for job in record.jobs]
    return list(map(_exit_code, launcher.launch(lines, initial_job_idx=0)))


def _search_path(folders: Sequence[Path]) -> Any:
    path = create_config_search_path(str(folders[0]))
    for folder in folders[1:]:
        path.prepend("user", f"file://{folder}", anchor="schema")  # which Hydra wants to be last
    return path


def run_job_file(config: DictConfig) -> int:
    """One job, wherever the launcher has put it; returns its exit code. A stop signal ends the whole sweep."""
    from posttrain.runs.job import run_isolated

    try:
        with stop_on_signals():  # also one that the job had no use for any more
            code = run_isolated(load_config(Path(config[JOB_KEY])), allow_targets=list(config[ALLOW_KEY]))
    except Stopped as stop:
        raise KeyboardInterrupt from stop
    if code in STOPPED:
        raise KeyboardInterrupt
    return code


def _exit_code(result: JobReturn) -> int:
    """A job's exit code; 1 where the launcher itself failed to run it."""
    return int(result.return_value) if result.status is JobStatus.COMPLETED else 1
