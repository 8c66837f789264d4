"""Threads spin while a process has its cores for itself, and sleep while others want them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from posttrain.runs import threads
from posttrain.runs.threads import Look, busy_seconds, may_watch, spin_briefly

STAT = """cpu  1000 100 200 5000 60 7 8 9 0 0
cpu0 600 60 120 2500 30 4 5 6 0 0
cpu1 400 40 80 2500 30 3 3 3 0 0
cpu11 900 0 0 0 0 0 0 0 0 0
intr 5 5
"""
PROGRAM = """
import json, os, subprocess, sys, threading, time
from posttrain.runs import threads
import torch
torch.set_num_threads(2)
torch.ones(1 << 20).add_(1)

def count():
    return len(os.listdir("/proc/self/task"))

def settled(wanted):
    until = time.monotonic() + 20
    while count() != wanted and time.monotonic() < until:
        time.sleep(0.01)
    return count()

"""
SCRIPTED = """
manners, before = threads.Manners(), count()
found = []
for others, cores in ((0.1, 2), (2.0, 4), (0.9, 2), (0.0, 2), (0.9, 2), *[(0.0, 2)] * 4):
    manners.see(others, threads.team_size(), cores)
    found.append((manners.idle is not None, settled(before + 2 * (manners.idle is not None)) - before))
print(json.dumps(found))
"""
REAL = """
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
threads.spin_while_alone()
busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
until = time.monotonic() + 30
while not any(thread.name == "idle threads" for thread in threading.enumerate()) and time.monotonic() < until:
    torch.randn(256, 256) @ torch.randn(256, 256)
for program in busy:
    program.kill()
print(json.dumps(sorted(thread.name for thread in threading.enumerate() if thread is not threading.main_thread())))
"""


def test_busy_seconds_of_some_cores() -> None:
    tick = os.sysconf("SC_CLK_TCK")
    assert busy_seconds(STAT, frozenset({0, 1})) == pytest.approx((600 + 60 + 120 + 4 + 5 + 400 + 40 + 80 + 3 + 3) / tick)
    assert busy_seconds(STAT, frozenset({1})) == pytest.approx(526 / tick), "neither idle, waiting for a disk, nor core 11"


def test_what_others_took() -> None:
    one, other = Look(10.0, 5.0, 2.0, frozenset({0, 1})), Look(12.0, 8.5, 5.0, frozenset({0, 1}))
    assert other.others_since(one) == pytest.approx(0.25)


def test_who_says_how_threads_wait_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert may_watch() is (sys.platform == "linux")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert not may_watch()
    spin_briefly()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_threads_spin_briefly_where_others_cannot_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "1")  # to be restored
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setattr(threads, "STAT", threads.STAT.with_name("no such file"))
    assert not may_watch()
    assert os.environ["GOMP_SPINCOUNT"] == threads.SPINS


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_threads_are_kept_from_spinning_while_the_cores_do_not_suffice() -> None:
    """Alone; beside a program of two threads on four cores; crowded; calm, but not for long; crowded; calm."""
    assert run(SCRIPTED) == [[False, 0], [False, 0], *[[True, 2]] * 6, [False, 0]]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_others_are_seen() -> None:
    assert run(REAL) == ["idle threads", "watch for others on these cores"]


def run(script: str) -> list[object]:
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", PROGRAM + script], env=kept, check=True, capture_output=True, text=True, timeout=120)
    found: list[object] = json.loads(done.stdout)
    return found
