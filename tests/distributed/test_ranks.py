"""Two processes on this machine: a dead rank, a stop signal, one folder, exact resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [
    sys.executable, "-m", "posttrain", "method=sft", "model=nano", "data=arithmetic", "evaluation=none", "tracking=none", "hardware=2xcpu",
    "limit=200", "global_batch=8", "checkpoint.every_steps=4",
]  # fmt: skip


def start(folder, *extra):
    return subprocess.Popen([*COMMAND, *extra, f"output_dir={folder}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


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


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_and_the_same_command_continues_it(tmp_path):
    folder = tmp_path / "run"
    process = start(folder, "max_steps=400")
    wait_for_step(folder, process, 6)
    ranks = ranks_of(process)
    assert sorted(ranks) == [0, 1]
    began = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=70)
    assert time.monotonic() - began < 60
    assert process.returncode == 1
    assert "rank 1 was killed by SIGKILL" in output
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    again = start(folder, "max_steps=12")
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0, output
    assert "continuing after step" in output
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [s for s in steps if s > 0] == [*range(1, 13), 12]


@pytest.mark.slow
def test_a_stop_signal_reaches_every_rank_once(tmp_path):
    folder = tmp_path / "run"
    process = start(folder, "max_steps=400")
    wait_for_step(folder, process, 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 143, output
    assert "Traceback" not in output
    stopped = json.loads((folder / "result.json").read_text())
    assert stopped["status"] == "stopped"
    assert (folder / "checkpoints" / f"step-{stopped['steps']:08d}").is_dir()
    assert output.count("finishing this step") <= 2


@pytest.mark.slow
def test_ranks_do_not_outlive_their_parent(tmp_path):
    process = start(tmp_path / "run", "max_steps=400")
    wait_for_step(tmp_path / "run", process, 1)
    ranks = ranks_of(process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in ranks.values()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
