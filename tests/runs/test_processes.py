"""A run in a process of its own: stop signals reach it, and it ends with the one that started it."""

import os
import signal
import subprocess
import sys
import time

import pytest

CHILD = """
import os, signal, sys, time
from pathlib import Path
def stop(number, frame):
    time.sleep(0.3)
    Path(sys.argv[1]).write_text("saved")
    sys.exit(128 + number)
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
