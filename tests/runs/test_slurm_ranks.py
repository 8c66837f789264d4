"""A SLURM task as a rank, and what a cluster's signals mean."""

from __future__ import annotations

import signal

from posttrain.runs.signals import StopRequest
from posttrain.runs.slurm.closing import CODES
from posttrain.runs.slurm.task import Task, rank_variables

SRUN = {"SLURM_JOB_ID": "123456", "SLURM_PROCID": "11", "SLURM_NTASKS": "16", "SLURM_LOCALID": "3", "SLURM_NODEID": "1"}


def test_ranks_over_two_nodes_meet_at_the_first_one() -> None:
    task = Task.from_environment(SRUN | {"SLURM_RESTART_COUNT": "2", "SLURM_CPUS_PER_TASK": "16"})
    assert (task.attempt, task.cpus) == ("123456-2", 16)
    assert rank_variables(task, 8, "node7") == {
        "RANK": "11", "LOCAL_RANK": "3", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "NODE_RANK": "1", "MASTER_ADDR": "node7",
        "MASTER_PORT": "13456",
    }  # fmt: skip


def test_a_clusters_signal_wins_over_the_one_before_it_and_ranks_agree() -> None:
    stop = StopRequest()
    stop.begin_steps()
    stop(signal.SIGTERM, None)
    assert (stop.exit_code, stop.agreed) == (143, False)
    stop(signal.SIGUSR2, None)
    stop(signal.SIGTERM, None)
    assert stop.exit_code == 140
    other = StopRequest()
    assert not other.agree([])
    assert other.agree([signal.SIGUSR2])
    assert (other.exit_code, other.agreed) == (140, True)


def test_a_job_that_may_not_be_queued_again_was_stopped() -> None:
    assert CODES[140] == 143
