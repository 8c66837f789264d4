"""A run in a process of its own: stop signals reach it, and it ends with the one that started it."""

import gc
import os
import signal
import subprocess
import sys
import time

import pytest

from posttrain.cores import CORES
from posttrain.runs import imports
from posttrain.runs.processes import rank_environment

CHILD = """
import os, signal, sys, time
from pathlib import Path
def stop(number, frame):
    time.sleep(0.3)
    Path(sys.argv[1]).write_text("saved")
    sys.exit(0 if "done" in sys.argv else 128 + number)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
Path(sys.argv[2]).write_text(str(os.getpid()))
time.sleep(60)
"""
PARENT = "import sys; from posttrain.runs.processes import run_child; sys.exit(run_child(sys.argv[1:]))"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_reaches_the_child_once_and_is_waited_for(tmp_path, number):
    saved, there = tmp_path / "saved", tmp_path / "pid"
    command = [sys.executable, "-c", PARENT, sys.executable, "-c", CHILD, str(saved), str(there)]
    parent = subprocess.Popen(command, start_new_session=True)
    while not there.exists() or not there.read_text():
        time.sleep(0.02)
    os.killpg(parent.pid, number)
    assert parent.wait(20) == 128 + number
    assert saved.read_text() == "saved"


def test_a_signal_that_a_child_has_no_use_for_stops_what_it_is_a_part_of(tmp_path):
    saved, there = tmp_path / "saved", tmp_path / "pid"
    command = [sys.executable, "-c", PARENT, sys.executable, "-c", CHILD, str(saved), str(there), "done"]
    parent = subprocess.Popen(command)
    while not there.exists() or not there.read_text():
        time.sleep(0.02)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(20) == -signal.SIGTERM
    assert saved.read_text() == "saved"


@pytest.mark.parametrize(
    ("world", "base", "threads"),
    [
        (2, {}, 4),
        (2, {"OMP_NUM_THREADS": "8"}, 4),  # as a process has it that is to use all of its cores
        (2, {"OMP_NUM_THREADS": "1"}, 1),
        (2, {"OMP_NUM_THREADS": ""}, 4),
        (2, {"OMP_NUM_THREADS": "6", CORES: "6"}, 3),  # a SLURM task's
        (16, {}, 1),
    ],
)
def test_ranks_share_the_cores_that_this_process_may_use(monkeypatch, world, base, threads):
    monkeypatch.setattr("posttrain.cores.os.sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr("posttrain.cores.os.cpu_count", lambda: 64)
    assert rank_environment(1, world, 1234, base)["OMP_NUM_THREADS"] == str(threads)


@pytest.mark.parametrize("on", [True, False])
def test_what_is_imported_is_not_looked_through_for_garbage(on):
    before, frozen = gc.isenabled(), gc.get_freeze_count()
    (gc.enable if on else gc.disable)()
    try:
        with imports.kept("not.there.yet"):
            assert not gc.isenabled()
            made = [[number] for number in range(1000)]
        assert gc.isenabled() == on
        assert gc.get_freeze_count() >= frozen + len(made)
        with imports.kept("gc"):
            assert gc.isenabled() == on
    finally:
        gc.unfreeze()
        (gc.enable if before else gc.disable)()
