"""Sweeps on a real SLURM cluster of one machine with two CPU slots."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from slurm_helpers import Sweep

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
COMMON = (
    "model=nano", "limit=200", "global_batch=8", "max_steps=40", "evaluation=none", "validate.at_start=false", "validate.at_end=false",
)  # fmt: skip


def statuses(database: Path) -> dict[str, str]:
    """MLflow's status of each run, by name; the parent's under an empty name."""
    rows = sqlite3.connect(database).execute(
        "select r.name, r.status, (select value from tags t where t.run_uuid = r.run_uuid and key = 'mlflow.parentRunId') from runs r"
    )
    return {name if parent else "": status for name, status, parent in rows}


def test_a_sweep_survives_its_shell_and_a_requeue_bit_for_bit(sweep: Callable[..., Sweep], tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    one = sweep("method=sft,dpo", "seed=1,2", "hardware=2xcpu", *COMMON, f"tracking.uri=sqlite:///{database}")
    first, names = "method=sft,seed=1", [f"method={method},seed={seed}" for method in ("sft", "dpo") for seed in (1, 2)]
    one.until(one.reached(first, 1))
    job = json.loads((one.folder / "sweep.json").read_text())["jobs"][0]["slurm_id"]
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    one.process.send_signal(signal.SIGINT)
    shown, _ = one.process.communicate(timeout=60)
    assert one.process.returncode == 130
    assert f"posttrain status sweep={one.folder}" in shown
    one.until(lambda: all((one.folder / ".jobs" / f"{number}.outcome").is_file() for number in range(4)), alive=False)
    table = one.command("status")
    assert table.count("finished") == 4, table + one.logs()
    assert statuses(database) == {"": "FINISHED"} | dict.fromkeys(names, "FINISHED")
    log = (one.folder / ".slurm" / f"{job}_0_log.out").read_text()
    assert "is queued again" in log
    assert "continuing after step" in log
    reference = tmp_path / "undisturbed"
    line = ["method=sft", "seed=1", "hardware=2xcpu", *COMMON, "tracking=none", f"output_dir={reference}"]
    subprocess.run([sys.executable, "-m", "posttrain", *line], env=one.environment, check=True, capture_output=True, timeout=240)
    assert (one.folder / first / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()


def test_a_dead_rank_ends_its_job_and_the_others_go_on(sweep: Callable[..., Sweep], tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    one = sweep("method=sft", "hardware=2xcpu,cpu", *COMMON, f"tracking.uri=sqlite:///{database}")
    one.until(one.reached("hardware=2xcpu", 1))
    began = time.monotonic()
    os.kill(task_of(rank=1, folder=one.folder), signal.SIGKILL)
    one.until((one.folder / ".jobs" / "0.outcome").is_file)
    assert time.monotonic() - began < 60
    shown, _ = one.process.communicate(timeout=240)
    assert one.process.returncode == 1, shown
    assert re.search(r"hardware=2xcpu\s+failed", shown), shown
    assert re.search(r"hardware=cpu\s+finished\s+40", shown), shown
    assert statuses(database) == {"": "FAILED", "hardware=2xcpu": "FAILED", "hardware=cpu": "FINISHED"}, one.logs()


def test_a_time_limit_is_no_end(sweep: Callable[..., Sweep], tmp_path: Path) -> None:
    """Before its limit, of two minutes, a job saves and goes back into the queue; its curve is that of a run without a limit."""
    endless = ("method=sft", "hardware=cpu", *COMMON, "max_steps=100000", "tracking=none")
    asleep = "hydra.launcher.setup=['[ \"$SLURM_RESTART_COUNT\" ] || sleep 50']"  # few steps to compare: SLURM counts only minutes
    one = sweep("seed=1", *endless, "hardware.time_limit=0.03", "hydra.launcher.signal_delay_s=20", asleep)
    line = [sys.executable, "-m", "posttrain", *endless, "seed=1", f"output_dir={tmp_path / 'undisturbed'}"]
    undisturbed = subprocess.Popen(line, env=one.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        one.until(lambda: "continuing after step" in one.logs())
        saved = int(re.findall(r"continuing after step (\d+)", one.logs())[-1])
        ours, theirs = (folder / "metrics.jsonl" for folder in (one.folder / "0", tmp_path / "undisturbed"))
        one.until(lambda: min(len(file.read_bytes().splitlines()) for file in (ours, theirs)) >= saved + 5)
    finally:
        undisturbed.kill()
        undisturbed.wait()
    assert saved > 0
    assert "is queued again" in one.logs()
    assert ours.read_bytes().splitlines()[: saved + 5] == theirs.read_bytes().splitlines()[: saved + 5]


def test_jobs_that_the_cluster_cancels_are_told_as_what_they_are(sweep: Callable[..., Sweep], tmp_path: Path) -> None:
    """One is cancelled and saves; of one every process is killed, so that whoever follows it must close its record; one goes on."""
    database = tmp_path / "mlflow.db"
    one = sweep("max_steps=5000,6000,24", "method=sft", "hardware=cpu", *COMMON[:3], *COMMON[4:], f"tracking.uri=sqlite:///{database}")
    for name, end in (("max_steps=5000", cancel), ("max_steps=6000", kill_all)):
        one.until(one.reached(name, 1))
        end(next(job["slurm_id"] for job in json.loads((one.folder / "sweep.json").read_text())["jobs"] if job["name"] == name))
    shown, _ = one.process.communicate(timeout=300)
    assert one.process.returncode == 143, shown
    table = one.command("status")
    for name, status in (("max_steps=5000", "stopped"), ("max_steps=6000", "failed"), ("max_steps=24", "finished")):
        assert f"{status}: {name}" in shown, shown
        assert re.search(rf"{name}\s.*{status}\s+\d+", table), table
    assert json.loads((one.folder / "max_steps=5000" / "result.json").read_text())["status"] == "stopped"
    ended = {"max_steps=5000": "KILLED", "max_steps=6000": "FAILED", "max_steps=24": "FINISHED"}
    assert statuses(database) == {"": "FAILED"} | ended, shown + one.logs()


def test_waiting_jobs_can_be_cancelled_from_another_shell(sweep: Callable[..., Sweep]) -> None:
    array = ("hydra.launcher.sbatch={hold: true}", "hydra.launcher.array_parallelism=1")
    one = sweep("seed=1,2", "hardware=cpu", "tracking=none", *COMMON, *array)
    one.until(lambda: '_1"' in (one.folder / "sweep.json").read_text() if (one.folder / "sweep.json").is_file() else False)
    assert len(re.findall(r"pending\s+waiting", one.command("status"))) == 2
    assert "2 of 2 jobs cancelled" in one.command("cancel")
    shown, _ = one.process.communicate(timeout=60)
    assert one.process.returncode == 143
    assert shown.count("stopped: seed") == 2


STUDY = (
    "method=sft,staged", "model=nano", "model.architecture.num_hidden_layers=1", "hardware=cpu", "limit=40", "data.generator.held_out=4",
    "global_batch=2", "max_length=128", "max_steps=8", "validate.at_start=false",
)  # fmt: skip
OF_A_PLACE = ("output_dir", "stages_dir", "tracking.uri", "tracking.parent_run_id", "model.path")


def test_a_study_is_the_same_here_and_on_the_cluster(sweep: Callable[..., Sweep], tmp_path: Path) -> None:
    """Arms, MLflow runs and curves, though a stage's job goes back into the queue; the stages of a pipeline are jobs."""
    stores = {name: [f"tracking.uri=sqlite:///{tmp_path / name}.db", f"stages_dir={tmp_path / name}.stages"] for name in ("here", "there")}
    one = sweep(*STUDY, "seed=1", *stores["there"])
    folder = tmp_path / "here" / "sweep"
    line = [sys.executable, "-m", "posttrain", "-m", *STUDY, "seed=1", *stores["here"], f"output_dir={folder}"]
    here = subprocess.Popen(line, env=one.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    one.until(one.reached("method=staged/1_sft", 1))
    record = json.loads((one.folder / "sweep.json").read_text())
    assert [stage["name"] for stage in record["stages"]] == ["method=staged/1_sft", "method=staged/2_grpo"]
    subprocess.run(["scancel", "--signal=USR2", record["stages"][0]["slurm_id"]], check=True)
    one.until(lambda: re.search(r"method=staged/2_grpo +\d+ +pending +waiting", one.command("status")) is not None)
    shown, _ = one.process.communicate(timeout=540)
    assert one.process.returncode == 0, shown + one.logs()
    assert "is queued again" in one.logs()
    assert here.wait(540) == 0
    assert arms(one.folder) == arms(folder)
    for run in ("method=sft", "method=staged/1_sft", "method=staged/2_grpo"):
        assert (one.folder / run / "metrics.jsonl").read_bytes() == (folder / run / "metrics.jsonl").read_bytes()
    assert len(known := tracked(tmp_path / "there.db")) == 4
    assert known == tracked(tmp_path / "here.db")


def test_a_stage_that_fails_ends_every_pipeline_that_needs_it(sweep: Callable[..., Sweep], tmp_path: Path) -> None:
    """Two pipelines share their first stage, which is one job; the jobs behind it are cancelled."""
    (tmp_path / "broken.jsonl").write_text("{")
    broken = ("stages.sft.data=files", f"stages.sft.data.train={tmp_path / 'broken.jsonl'}", f"stages_dir={tmp_path / 'stages'}")
    alike = "stages.sft.scheduler.warmup=0.05"
    one = sweep("method=staged,staged_dpo", *STUDY[1:5], *STUDY[6:], "tracking=none", alike, *broken)
    shown, _ = one.process.communicate(timeout=540)
    assert one.process.returncode == 2, shown
    record = json.loads((one.folder / "sweep.json").read_text())
    first, *behind = record["stages"]
    assert first["runs"] == ["method=staged", "method=staged_dpo"]
    assert [stage["name"] for stage in behind] == ["method=staged/2_grpo", "method=staged_dpo/2_dpo"]
    table = one.command("status")
    for run in first["runs"]:
        assert json.loads((one.folder / run / "result.json").read_text())["status"] == "failed"
        assert re.search(rf"{run} +failed", table), table
    assert len(re.findall(r"2_\w+ +\d+ +cancelled +stopped", table)) == 2, table


def arms(study: Path) -> Any:
    """What study.json says of a study, without its place."""
    return {key: value for key, value in json.loads((study / "study.json").read_text()).items() if key not in ("name", "parent")}


def tracked(database: Path) -> list[tuple[str, str, dict[str, str], dict[str, str]]]:
    """Name, status, tags and parameters of each run in MLflow, without what is of one place."""
    store = sqlite3.connect(database)
    found = []
    for number, name, status in store.execute("select run_uuid, name, status from runs"):
        rows = {kind: dict(store.execute(f"select key, value from {kind} where run_uuid = ?", [number])) for kind in ("params", "tags")}
        params = {key: value for key, value in rows["params"].items() if key not in OF_A_PLACE}
        tags = {key: value for key, value in rows["tags"].items() if key in ("posttrain.method", "posttrain.arm", "posttrain.stage")}
        found.append((name if "mlflow.parentRunId" in rows["tags"] else "", status, tags, {} if not tags else params))
    return sorted(found, key=lambda run: run[0])


def cancel(job: str) -> None:
    """As a user or an administrator does, from any shell."""
    subprocess.run(["scancel", job], check=True)


def kill_all(job: str) -> None:
    """Every process of a job, its batch script among them."""
    for number, environment, _ in processes():
        if f"SLURM_JOB_ID={job}" in environment:
            os.kill(number, signal.SIGKILL)


def task_of(rank: int, folder: Path) -> int:
    """Process id of a rank of the job whose files lie in `folder`."""
    for number, environment, words in processes():
        if f"SLURM_PROCID={rank}" in environment and "submitit.core._submit" in words and str(folder / ".slurm") in words:
            return number
    raise LookupError(f"no rank {rank}")


def processes() -> Iterator[tuple[int, list[str], list[str]]]:
    """Number, environment and command line of each process of this machine that we may look at."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment, words = ((process / name).read_text(errors="replace").split("\0") for name in ("environ", "cmdline"))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        yield int(process.name), environment, words
