"""What a cluster is asked for: the keys of `hydra.launcher` with hydra/launcher=slurm, and the batch script they make."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from posttrain.runs.signals import CONTINUED

LOGS = ".slurm"  # in the sweep's folder: batch scripts and what jobs print


@dataclass(frozen=True, kw_only=True)
class Request:
    """Resources and settings of the SLURM jobs of runs on one kind of hardware; conf/hydra/launcher/slurm.yaml explains the keys."""

    nodes: int
    tasks_per_node: int
    cpus_per_task: int
    gpus_per_node: int
    mem_gb: float | None
    timeout_min: int
    name: str = "posttrain"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    modules: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    container: str | None = None
    container_command: str = "apptainer exec --nv"
    python: str | None = None
    sbatch: dict[str, Any] | None = None
    srun: list[str] = field(default_factory=list)
    array_parallelism: int = 256
    signal_delay_s: int = 120
    max_requeues: int = 20
    stages: Literal["chained", "one_job"] = "chained"
    dry_run: bool = False

    @property
    def interpreter(self) -> str:
        """The shell words that start Python in a task, inside the container where there is one."""
        if self.container is None:
            return self.python or shlex.quote(sys.executable)
        return f"{self.container_command} {shlex.quote(self.container)} {self.python or 'python3'}"


def parameters(request: Request, folder: Path) -> dict[str, Any]:
    """The request in sbatch's names, as submitit takes them. folder: the sweep's."""
    asked = {
        "job_name": request.name,
        "time": request.timeout_min,
        "nodes": request.nodes,
        "ntasks_per_node": request.tasks_per_node,
        "cpus_per_task": request.cpus_per_task,
        "gpus_per_node": request.gpus_per_node or None,
        "mem": None if request.mem_gb is None else f"{math.ceil(1024 * request.mem_gb)}M",
        "partition": request.partition,
        "account": request.account,
        "qos": request.qos,
        "constraint": request.constraint,
        "array_parallelism": request.array_parallelism,
        "signal_delay_s": request.signal_delay_s,
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True, **(request.sbatch or {})},
        "setup": setup_lines(request) or None,
        "teardown": teardown_lines(request, folder),
        "srun_args": srun_arguments(request),
    }
    return {name: value for name, value in asked.items() if value is not None}


def setup_lines(request: Request) -> list[str]:
    """What the batch script does before the tasks start."""
    return [*(f"module load {shlex.quote(module)}" for module in request.modules), *request.setup]


def srun_arguments(request: Request) -> list[str]:
    """How tasks are started: all end when one fails, and all write into the job's one log (of two --output the last counts)."""
    return [
        "--kill-on-bad-exit=1",
        "--wait=0",
        f"--cpus-per-task={request.cpus_per_task}",  # not taken over from sbatch since SLURM 22.05
        "--output=all",
        *request.srun,
    ]


def teardown_lines(request: Request, folder: Path) -> list[str]:
    """What the batch script does when the tasks have ended: start the job again where it is to be continued, else note a failure."""
    closing = f"{request.interpreter} -m posttrain.runs.slurm.closing {shlex.quote(str(folder))}"
    return [
        "code=$?",
        "[ $code -eq 0 ] && exit 0",
        "id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; id=${id:-$SLURM_JOB_ID}",
        f"if [ $code -eq {CONTINUED} ] && [ ${{SLURM_RESTART_COUNT:-0}} -lt {request.max_requeues} ]; then",
        '    echo "posttrain: job $id is queued again and will go on from its last checkpoint"',
        "    scontrol requeue $id && exit 0",
        "fi",
        f"{closing} $id $code",
        "exit $code",
    ]


def request_of(launcher: Mapping[str, Any]) -> Request:
    """The request in a resolved `hydra.launcher` node."""
    return Request(**{key: value for key, value in launcher.items() if key != "_target_"})
