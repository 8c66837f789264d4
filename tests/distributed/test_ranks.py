"""Two processes on this machine: a dead rank, a stop signal, one folder, exact resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import preloaded
import pytest

from posttrain.runs.forking.request import SERVER

LINE = [
    "method=sft", "model=nano", "data=arithmetic", "evaluation=none", "tracking=none", "hardware=2xcpu", "limit=200", "global_batch=8",
    "max_steps=400", "checkpoint.every_steps=4", "data.generator.held_out=24",
]  # fmt: skip


def start(folder):
    """A command line that starts from nothing."""
    command = [sys.executable, "-m", "posttrain", *LINE, f"output_dir={folder}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_again(folder):
    """The same, itself preloaded; its ranks start from nothing."""
    return preloaded.posttrain(*LINE, f"output_dir={folder}", **{SERVER: ""})


def wait_for_step(folder, process, step):
    deadline = time.monotonic() + 150
    path = folder / "metrics.jsonl"
    while process.poll() is None:
        lines = path.read_text().splitlines() if path.exists() else []
        if lines and json.loads(lines[-1])["step"] >= step:
            return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ranks_of(process):
    """Process ids of the ranks, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == process.pid:
                environment = dict(e.split("=", 1) for e in (folder / "environ").read_text().split("\0") if "=" in e)
                if "LOCAL_RANK" in environment:
                    found[int(environment["LOCAL_RANK"])] = int(folder.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def steps_of(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def gone_within(pids, seconds):
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow
def test_one_run_is_stopped_loses_a_rank_and_loses_its_parent(tmp_path):
    """The same command goes on after each. Three command lines, since each takes its processes seconds to start."""
    folder = tmp_path / "run"
    stopped_at = stopped_by_a_signal(folder)
    continued_and_lost_a_rank(folder, stopped_at)
    ranks_do_not_outlive_their_parent(folder)
    found = [step for step in steps_of(folder) if step > 0]
    assert found == sorted(set(found))
    assert found[-1] == len(found)  # none is missing, none is there twice


def stopped_by_a_signal(folder):
    process = start(folder)
    wait_for_step(folder, process, 2)
    process.send_signal(signal.SIGTERM)
    output = "".join(process.communicate(timeout=100))
    assert process.returncode == 143, output
    assert "Traceback" not in output
    stopped = json.loads((folder / "result.json").read_text())
    assert stopped["status"] == "stopped"
    assert (folder / "checkpoints" / f"step-{stopped['steps']:08d}").is_dir()
    assert output.count("finishing this step") <= 2
    return stopped["steps"]


def continued_and_lost_a_rank(folder, step):
    process = start_again(folder)
    wait_for_step(folder, process, step + 6)
    ranks = ranks_of(process)
    assert sorted(ranks) == [0, 1]
    began = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    output = "".join(process.communicate(timeout=70))
    assert time.monotonic() - began < 60
    assert process.returncode == 1
    assert f"continuing after step {step}" in output
    assert "rank 1 was killed by SIGKILL" in output
    assert gone_within(ranks.values(), 0)


def ranks_do_not_outlive_their_parent(folder):
    before = steps_of(folder)[-1]
    process = start_again(folder)
    wait_for_step(folder, process, before + 1)
    ranks = ranks_of(process)
    assert sorted(ranks) == [0, 1]
    process.kill()
    process.communicate()
    assert gone_within(ranks.values(), 20)
