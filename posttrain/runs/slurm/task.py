"""One task of a SLURM job: one rank of a run. The leading one opens the folder and tokenises while the others wait for a file."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from posttrain.cores import CORES
from posttrain.errors import ConfigError, Problem
from posttrain.runs.base_config import load_config
from posttrain.runs.sweep_record import Outcome
from posttrain.runs.threads import spin_while_alone

PORTS = range(10_000, 30_000)  # below those that systems give out by themselves
WAIT_SECONDS = 0.2
TURN_SECONDS = 5.0
WRONG = 2
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGUSR2)


@dataclass(frozen=True)
class Task:
    """This process as SLURM numbers it. attempt: tells this start of the job from an earlier one. cpus: of a task."""

    rank: int
    world: int
    local: int
    node: int
    job: int
    attempt: str
    cpus: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Task:
        """As srun tells it."""
        job = environment["SLURM_JOB_ID"]
        numbers = {"rank": "SLURM_PROCID", "world": "SLURM_NTASKS", "local": "SLURM_LOCALID", "node": "SLURM_NODEID"}
        return cls(
            **{name: int(environment[variable]) for name, variable in numbers.items()},
            job=int(job),
            attempt=f"{job}-{environment.get('SLURM_RESTART_COUNT', '0')}",
            cpus=int(environment.get("SLURM_CPUS_PER_TASK", "1")),
        )


def rank_variables(task: Task, devices: int, first_host: str) -> dict[str, str]:
    """The rank in torchrun's names. devices: of a node. first_host: where the leading rank runs."""
    ours = {
        "RANK": task.rank, "LOCAL_RANK": task.local, "WORLD_SIZE": task.world, "LOCAL_WORLD_SIZE": devices, "NODE_RANK": task.node,
        "MASTER_ADDR": "127.0.0.1" if task.world == devices else first_host, "MASTER_PORT": PORTS[task.job % len(PORTS)],
    }  # fmt: skip
    return {name: str(value) for name, value in ours.items()}


def run(file: str, allow_targets: Sequence[str]) -> None:
    """Be this task's rank of the run that `file` describes. Ends the process with the run's exit code where it is not 0."""
    task = _begun()
    config = _continued(load_config(Path(file)), task)
    gate = Gate(Path(f"{file}.{task.attempt}"))
    _end(
        _lead(Path(file), gate, lambda: _whole(config, task, gate, allow_targets)) if task.rank == 0 else _follow(task, gate, allow_targets)
    )


def run_stage(file: str, allow_targets: Sequence[str]) -> None:
    """The same for one stage of a pipeline, which `file` names; the last one's job says in the pipeline's name how that has ended."""
    from posttrain.runs.pipeline.chained import run_stage as make_stage

    task = _begun()
    at = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    pipeline = _continued(load_config(Path(at["pipeline"])), task)
    gate = Gate(Path(f"{file}.{task.attempt}"))

    def make(config: dict[str, Any]) -> int:
        from posttrain.runs.job import exit_code

        return exit_code(lambda: _opened_and_trained(config, task, gate, allow_targets))

    def lead() -> int:
        code = make_stage(pipeline, Path(pipeline["output_dir"]), at["stage"], make, allow=allow_targets)
        if code == 0 and at["stage"] + 1 == len(pipeline["stages"]):
            Outcome(Path(at["pipeline"])).write(0)
        return code

    code = _lead(Path(file), gate, lead) if task.rank == 0 else _follow(task, gate, allow_targets)
    if task.rank == 0 and code in STOPPED[:-1]:
        from posttrain.runs.slurm.closing import close_pipelines_of

        close_pipelines_of(Path(file), code)
    _end(code)


def _begun() -> Task:
    """This process as a task, ready to import what trains."""
    for number in (signal.SIGTERM, signal.SIGUSR2):  # until training has begun there is nothing to save
        signal.signal(number, signal.SIG_DFL)
    spin_while_alone()
    task = Task.from_environment(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", str(task.cpus))
    os.environ[CORES] = str(task.cpus)  # for ranks that this task itself starts
    return task


def _continued(config: dict[str, Any], task: Task) -> dict[str, Any]:
    """The config for this start of the job: one that the cluster started again goes on, also where the user had it begin anew."""
    again = not task.attempt.endswith("-0") and config["resume"] == "never"
    return {**config, "resume": "auto"} if again else config


def _end(code: int) -> None:
    """A job that ended well goes on to say so to submitit."""
    if code:
        sys.exit(code)


class Gate:
    """A file that tells the other tasks what there is to train: a config's path, or nothing. Its absence means: not known yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, config: Path | None) -> None:
        """Let the others go on."""
        from posttrain.runs.files import write_atomic

        write_atomic(self.path, "" if config is None else str(config))

    @property
    def is_open(self) -> bool:
        """Whether the others have been let in."""
        return self.path.is_file()

    def wait(self) -> Path | None:
        """The config to train. Waits without a limit: srun ends this task if the leading one dies."""
        while self.path.name not in os.listdir(self.path.parent):  # a listing: network file systems remember that a file was not there
            time.sleep(WAIT_SECONDS)
        content = self.path.read_text(encoding="utf-8")
        return Path(content) if content else None


def _lead(file: Path, gate: Gate, work: Callable[[], int]) -> int:
    """Do the leading task's work, and leave the outcome beside the job's file, unless another process has the run's folder."""
    from posttrain.runs.folder_lock import Taken
    from posttrain.runs.job import exit_code

    outcome, taken = Outcome(file), list[Taken]()

    def tried() -> int:
        try:
            return work()
        except Taken as error:
            taken.append(error)
            raise

    outcome.clear()
    code = exit_code(tried)
    if gate.is_open:
        gate.path.unlink(missing_ok=True)
    elif code == 0:
        gate.open(None)
    if code != STOPPED[-1] and not taken:
        outcome.write(code)
    return code


def _whole(config: dict[str, Any], task: Task, gate: Gate, allow_targets: Sequence[str]) -> int:
    """A run, or a pipeline whose stages are all in this job."""
    if not config.get("stages"):
        return _opened_and_trained(config, task, gate, allow_targets)
    from posttrain.runs.pipeline.run import run_pipeline

    _check(config, task, allow_targets)
    return run_pipeline(config, Path(config["output_dir"]), allow_targets=allow_targets)


def _opened_and_trained(config: dict[str, Any], task: Task, gate: Gate, allow_targets: Sequence[str]) -> int:
    """Check, open the folder, tokenise, let the others in, train."""
    from posttrain.runs import entering
    from posttrain.runs.job import opened
    from posttrain.runs.resume import CONFIG

    _check(config, task, allow_targets)
    folder = Path(config["output_dir"])
    with opened(config, folder, allow_targets) as ended:
        if ended is not None:
            return ended
        if task.world > 1:
            from posttrain.runs.inputs import load_inputs

            load_inputs(entering.applied(config))
            gate.open(folder / CONFIG)
        return _train(config, task, allow_targets)


def _follow(task: Task, gate: Gate, allow_targets: Sequence[str]) -> int:
    """Wait for the leading task, then train with it. A stop that all ranks agreed on is for the leading one to report."""
    config = gate.wait()
    if config is None:
        return 0
    code = _train(load_config(config), task, allow_targets)
    if code == WRONG:
        time.sleep(TURN_SECONDS)  # most often the leading rank says the same, in full: it goes first
    return 0 if code in STOPPED else code


def _check(config: dict[str, Any], task: Task, allow_targets: Sequence[str]) -> None:
    """Raises ConfigError where this node, or the number of tasks, is not what the run needs."""
    from posttrain.runs import rules
    from posttrain.runs.check import check

    problems = check(config, allow_targets=allow_targets, rules=rules.TASK)
    wanted = 1 if config.get("stages") else config["hardware"]["nodes"] * config["hardware"]["devices"]
    if task.world != wanted:
        message = f"hardware={config['hardware']['name']} needs {wanted} tasks, the job has {task.world}"
        problems.append(Problem("hydra.launcher.tasks_per_node", message, "leave nodes and tasks_per_node to the hardware"))
    if problems:
        raise ConfigError(problems)


def _train(config: dict[str, Any], task: Task, allow_targets: Sequence[str]) -> int:
    from submitit.slurm.slurm import SlurmJobEnvironment

    from posttrain.runs.job import train_rank

    os.environ.update(rank_variables(task, config["hardware"]["devices"], SlurmJobEnvironment().hostnames[0]))
    code = train_rank(config, allow_targets=allow_targets)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # all is saved: a second one must not cut the goodbye short
    return code
