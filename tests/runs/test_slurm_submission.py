"""What SLURM has is known, and what ended is told, whatever cuts a command off: with a queue that is a dictionary."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from submitit.core.utils import CommandFunction, FailedJobError

from posttrain.errors import ConfigError
from posttrain.runs import rules
from posttrain.runs.base_config import load_config
from posttrain.runs.check import compose_and_check
from posttrain.runs.commands import cancel as cancel_command
from posttrain.runs.commands import status as status_command
from posttrain.runs.commands.table import Call
from posttrain.runs.folder_lock import alone_in
from posttrain.runs.pipeline.wanted import likely_keys
from posttrain.runs.records import Result, Status, write_result
from posttrain.runs.slurm import closing, follow, launch, queue, task
from posttrain.runs.slurm.chain import Wish
from posttrain.runs.slurm.live import live_in
from posttrain.runs.slurm.request import LOGS, Request
from posttrain.runs.sweep_record import JobRecord, Outcome, SweepRecord, read_record

REQUEST = Request(nodes=1, tasks_per_node=1, cpus_per_task=1, gpus_per_node=0, mem_gb=None, timeout_min=60)
REFUSAL = "Batch job submission failed: QOSMaxSubmitJobPerUserLimit"


class Cluster:
    """states: of the jobs it knows. upon: what happens when it is given the job of this number. waits: for what each job waits."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.upon: dict[int, Callable[[], object]] = {}
        self.waits: dict[str, str] = {}

    def sbatch(self, command: Sequence[str]) -> str:
        number = len(self.states) + 1
        self.upon.get(number, lambda: None)()
        self.states[str(number)] = "PENDING"
        self.waits[str(number)] = Path(command[1]).read_text().partition("--dependency=")[2].partition("\n")[0]
        return f"Submitted batch job {number}"

    def squeue(self, ids: Collection[str]) -> dict[str, str]:
        return {slurm_id: self.states[slurm_id] for slurm_id in ids if slurm_id in self.states}

    def scancel(self, ids: Sequence[str]) -> None:
        self.states |= dict.fromkeys(ids, "CANCELLED")


def refuse() -> None:
    raise FailedJobError(REFUSAL)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(CommandFunction, "__call__", lambda command: made.sbatch(command.command))
    monkeypatch.setattr(queue, "there", lambda: True)
    monkeypatch.setattr(queue, "states", made.squeue)
    monkeypatch.setattr(queue, "cancel", made.scancel)
    monkeypatch.setattr(follow, "follow", lambda record, say: [0] * len(record.jobs))
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.0)
    return made


def recorded(folder: Path, configs: dict[str, dict[str, Any]]) -> SweepRecord:
    """A sweep whose jobs are yet to be submitted."""
    jobs = []
    for number, (name, config) in enumerate(configs.items()):
        file = folder / ".jobs" / f"{number}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(config))
        jobs.append(JobRecord(name, folder / name, file))
    record = SweepRecord(folder, tuple(jobs), {})
    record.write()
    return record


def runs_of(folder: Path, count: int) -> tuple[SweepRecord, list[Wish]]:
    configs = {f"seed={seed}": {"output_dir": str(folder / f"seed={seed}"), "stages": None, "seed": seed} for seed in range(count)}
    return recorded(folder, configs), [Wish(name, config, [REQUEST]) for name, config in configs.items()]


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A pipeline of two stages."""
    lines = ["model=nano", "limit=40", "method=staged", "stages=[sft,grpo]", "max_steps=300", "tracking=none"]
    return compose_and_check([*lines, "output_dir=run", "stages_dir=stages"], rules=rules.PLAN)


@pytest.fixture
def chain(tmp_path: Path, composed: dict[str, Any]) -> tuple[SweepRecord, Wish]:
    config = {**composed, "output_dir": str(tmp_path / "run"), "stages_dir": str(tmp_path / "stages")}
    record = recorded(tmp_path, {"run": config})
    config = load_config(record.jobs[0].file)
    return record, Wish("run", config, [REQUEST, REQUEST])


def came_to(wish: Wish, stage: int, status: Status) -> None:
    """What a stage leaves in the store."""
    folder = Path(wish.config["stages_dir"]) / likely_keys(wish.config)[stage]
    folder.mkdir(parents=True)
    counts = dict.fromkeys(("steps", "examples", "tokens", "peak_memory_bytes"), 3)
    rates = dict.fromkeys(("flops", "train_seconds", "tokens_per_second"), 3.0)
    write_result(folder / "result.json", Result(status=status, method="sft", metrics={}, **counts, **rates))  # type: ignore[arg-type]


def test_where_one_job_is_refused_those_before_it_are_cancelled_and_known(cluster: Cluster, tmp_path: Path) -> None:
    record, wishes = runs_of(tmp_path, 4)
    cluster.upon[3] = refuse
    with pytest.raises(ConfigError, match=f"refused a job; the 2 jobs before it are cancelled: {REFUSAL}"):
        launch.run(wishes, record, [])
    assert cluster.states == {"1": "CANCELLED", "2": "CANCELLED"}
    known = read_record(tmp_path)
    assert [job.slurm_id for job in known.jobs] == ["1", "2", None, None]
    assert [Outcome(job.file).read() for job in known.jobs] == [143, 143, None, None]
    assert live_in(tmp_path).jobs == {}


def test_where_slurm_is_away_the_jobs_before_the_refused_one_are_named(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: Collection[str]) -> dict[str, str]:
        raise queue.NoAnswer("down")

    record, wishes = runs_of(tmp_path, 2)
    cluster.upon[2] = refuse
    monkeypatch.setattr(queue, "states", away)
    with pytest.raises(ConfigError, match=r"the one job before it is still there \(posttrain cancel sweep="):
        launch.run(wishes, record, [])
    assert [job.slurm_id for job in read_record(tmp_path).jobs] == ["1", None]


def test_ctrl_c_between_two_jobs_leaves_the_first_ones_running_and_known(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While sbatch is under way, the signal waits until its job is written down."""
    record, wishes = runs_of(tmp_path, 4)
    cluster.upon[2] = lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(follow.LeftRunning):
        launch.run(wishes, record, [])
    assert cluster.states == {"1": "PENDING", "2": "PENDING"}
    assert [job.slurm_id for job in read_record(tmp_path).jobs] == ["1", "2", None, None]
    assert {job.slurm_id for job in live_in(tmp_path).jobs.values()} == {"1", "2"}
    assert f"posttrain cancel sweep={tmp_path}" in capsys.readouterr().out


def test_a_program_started_while_a_job_is_submitted_is_spared_ctrl_c(cluster: Cluster, tmp_path: Path) -> None:
    blocked: list[str] = []
    cluster.upon[1] = lambda: blocked.append(subprocess.check_output(["grep", "SigBlk", "/proc/self/status"], text=True))
    record, wishes = runs_of(tmp_path, 1)
    launch.run(wishes, record, [])
    assert int(blocked[0].split()[1], 16) & (1 << (signal.SIGINT - 1))


def test_a_chain_that_was_cut_off_gets_only_the_stages_it_lacks(cluster: Cluster, chain: tuple[SweepRecord, Wish], tmp_path: Path) -> None:
    record, wish = chain
    cluster.upon[1] = lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(follow.LeftRunning):
        launch.run([wish], record, [])
    assert [(stage.name, stage.slurm_id) for stage in read_record(tmp_path).stages] == [("run/1_sft", "1"), ("run/2_grpo", None)]
    cluster.states["1"] = "RUNNING"
    live = live_in(tmp_path)
    job = live.job_of(wish.config)
    assert job is not None
    assert live.id_of(job) is None
    with pytest.raises(ConfigError, match="job 1 still trains there, with other max_steps, seed"):
        live.job_of({**wish.config, "seed": 7, "max_steps": 7})
    again = SweepRecord(tmp_path, (job,), {}, stages=live.stages)
    with alone_in(tmp_path / "run"):  # as the first stage has it
        launch.run([wish], again, [], live.ids)
    known = read_record(tmp_path)
    assert [(stage.name, stage.slurm_id) for stage in known.stages] == [("run/1_sft", "1"), ("run/2_grpo", "2")]
    assert (known.jobs[0].slurm_id, cluster.waits["2"]) == ("2", "afterok:1")
    live = live_in(tmp_path)
    assert live.id_of(known.jobs[0]) == "2"


def test_a_stage_that_is_ending_badly_is_not_waited_for(cluster: Cluster, chain: tuple[SweepRecord, Wish], tmp_path: Path) -> None:
    record, wish = chain
    launch.run([wish], record, [])
    cluster.states |= {"1": "COMPLETING", "2": "CANCELLED"}
    Outcome(read_record(tmp_path).stages[0].file).write(1)
    assert live_in(tmp_path).jobs == {}
    assert live_in(tmp_path).ids == frozenset()


def test_a_cancelled_chain_that_waits_says_so(cluster: Cluster, chain: tuple[SweepRecord, Wish], tmp_path: Path) -> None:
    record, wish = chain
    launch.run([wish], record, [])
    came_to(wish, 0, "finished")
    cluster.states["1"] = "COMPLETED"
    Outcome(read_record(tmp_path).stages[0].file).write(0)
    assert cancel_command.run(Call((f"sweep={tmp_path}",))) == 0
    assert cluster.states == {"1": "COMPLETED", "2": "CANCELLED"}
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], [stage["status"] for stage in result["stages"]]) == ("stopped", ["finished"])
    assert Outcome(record.jobs[0].file).read() == 143


def test_a_cancelled_stage_that_runs_closes_its_pipelines(
    cluster: Cluster, chain: tuple[SweepRecord, Wish], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM ends the batch script with the tasks, so the leading one does it."""
    record, wish = chain
    launch.run([wish], record, [])
    cluster.states["1"] = "RUNNING"
    cancel_command.run(Call((f"sweep={tmp_path}",)))
    assert Outcome(record.jobs[0].file).read() is None

    def stopped(*_: Any, **__: Any) -> int:
        came_to(wish, 0, "stopped")
        return 143

    monkeypatch.setattr("posttrain.runs.pipeline.chained.run_stage", stopped)
    for name, value in {"JOB_ID": "1", "PROCID": "0", "NTASKS": "1", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(task, "_begun", lambda: task.Task.from_environment(os.environ))
    with pytest.raises(SystemExit, match="143"):
        task.run_stage(str(read_record(tmp_path).stages[0].file), [])
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "stopped"
    assert Outcome(record.jobs[0].file).read() == 143


def test_status_tells_what_ended_without_a_word(
    cluster: Cluster, chain: tuple[SweepRecord, Wish], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SLURM has forgotten both jobs; the first one had begun."""
    record, wish = chain
    launch.run([wish], record, [])
    (tmp_path / LOGS / "1_0_log.out").touch()
    cluster.states = {}
    status_command.run(Call((f"sweep={tmp_path}",)))
    shown = capsys.readouterr().out.splitlines()
    assert [row.split()[-1] for row in shown[-3:]] == ["failed", "failed", "stopped"], shown
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "failed"
    status_command.run(Call((f"sweep={tmp_path}",)))
    assert "the same command continues" not in capsys.readouterr().out  # it was closed before


def test_a_job_whose_run_another_process_trains_leaves_the_outcome_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the task nor the batch script, nor who follows or asks, tells the other one's run as failed."""
    record, _ = runs_of(tmp_path, 1)
    record = record.submitted({"seed=0": "1"})
    record.write()
    job = record.jobs[0]

    def work() -> int:
        with alone_in(job.folder):
            return 0

    with alone_in(job.folder):
        assert task._lead(job.file, task.Gate(tmp_path / "gate"), work) == 2
        assert closing.main(str(tmp_path), "1", "2") == 0
        assert Outcome(job.file).read() is None
    assert "another process trains in" in capsys.readouterr().out
    assert task._lead(job.file, task.Gate(tmp_path / "gate"), work) == 0
    assert Outcome(job.file).read() == 0


def test_who_follows_waits_for_the_process_that_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, _ = runs_of(tmp_path, 1)
    record = record.submitted({"seed=0": "1"})
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(queue, "states", lambda ids: {"1": "FAILED"})
    looks: list[float] = []

    def ended(folder: Path) -> bool:
        looks.append(time.monotonic())
        if len(looks) == 3:
            Outcome(record.jobs[0].file).write(0)
        return True

    monkeypatch.setattr(closing, "is_taken", ended)
    assert follow.follow(record, print) == [0]
