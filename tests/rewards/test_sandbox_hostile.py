"""Hostile programs neither pass nor harm, with all guards, with some and with none, and nothing survives."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from hostile import FORGERS, HARMERS

from posttrain.rewards.sandbox import Limits, Outcome, Sandbox, active_guards, run_check, run_tests

ROOT = Path(__file__).resolve().parents[2]
TASK = ["assert f(2) == 4", "assert f(3) == 9"]
SHORT = Limits(wall=3.0, cpu=1, memory=256)
SQUARE = "def f(x): return x * x"
SECRET = "HOSTILE_SECRET"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the guards are those of Linux")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """A victim folder, a listener, a secret, and sandboxes that start with the secret in the environment."""
    victim = tmp_path_factory.mktemp("victim")
    (victim / "file").write_text("kept")
    os.environ[SECRET] = "kept"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        yield {"victim": victim, "port": listener.getsockname()[1], "pid": os.getpid(), "listener": listener}
    del os.environ[SECRET]


@pytest.fixture(scope="module")
def judge(world: dict[str, object]) -> Iterator[object]:
    """Outcomes of all hostile programs by guards left out, several programs at once."""
    boxes: list[Sandbox] = []

    def outcomes(programs: dict[str, str], *without: str) -> dict[str, Outcome]:
        box = Sandbox(4, without=without)
        boxes.append(box)
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda code: run_tests(code.format(**world), tests=TASK, limits=SHORT, sandbox=box), programs.values())
            outcome = dict(zip(programs, found, strict=True))
        assert len(psutil.Process(box._process.pid).children(recursive=True)) == ("namespaces" in box.guards)
        return outcome

    yield outcomes
    for box in boxes:
        box.close()


def contained(outcomes: dict[str, Outcome]) -> None:
    wrong = {
        name: outcome for name, outcome in outcomes.items() if outcome.status not in ("failed", "timeout", "died") or outcome.passed == 2
    }
    assert wrong == {}


def unharmed(world: dict[str, object]) -> None:
    victim, listener = world["victim"], world["listener"]
    assert isinstance(victim, Path)
    assert isinstance(listener, socket.socket)
    assert [path.name for path in victim.iterdir()] == ["file"]
    assert (victim / "file").read_text() == "kept"
    assert not Path("/dev/shm/hostile").exists()
    with pytest.raises(TimeoutError):
        listener.accept()


def test_forgers_do_not_pass(judge, world) -> None:
    outcomes = judge(FORGERS)
    contained(outcomes)
    unharmed(world)
    slow = {name: outcome.seconds for name, outcome in outcomes.items() if outcome.seconds > SHORT.wall + 2}
    assert slow == {}


def test_a_program_cannot_make_its_tests_unusable(world) -> None:
    """Else a wrong answer would cost nothing."""
    test = "def check(candidate):\n assert candidate(2) == 4\n"
    assert run_check(FORGERS["blames the tests"].format(**world), test, "f", SHORT).status == "failed"


def test_harmers_are_contained(judge, world) -> None:
    contained(judge(HARMERS))
    unharmed(world)


def test_what_one_guard_misses_another_catches(judge, world) -> None:
    """Without the filter of system calls there are processes, sockets and kernel interfaces: namespaces and limits hold."""
    if "namespaces" not in active_guards():
        pytest.skip("this machine allows no namespaces")
    names = ("a fork bomb", "connects to a listener", "connects by system call", "deletes files", "escapes by dots", "a daemon in a session of its own", "runs a shell", "mounts", "traces other processes", "writes to other processes", "fills shared memory")  # fmt: skip
    contained(judge({name: HARMERS[name] for name in names}, "seccomp"))
    time.sleep(1)
    unharmed(world)


def test_degraded_to_limits(judge) -> None:
    """Where the machine allows no guard at all, a verdict still cannot be forged, and what a program starts ends with it."""
    everything = ("namespaces", "network-namespace", "user-id", "landlock", "seccomp")
    reading = {"looks for test files", "reads other processes", "looks for the tests in its memory"}
    contained(judge({name: code for name, code in FORGERS.items() if name not in reading}, *everything))
    daemon = "import os, time\ndef f(x):\n if os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: time.sleep(1000)\n  os._exit(0)"
    contained(judge({"a daemon": daemon}, *everything))


@pytest.mark.parametrize("without", [(), ("namespaces", "network-namespace", "user-id", "landlock", "seccomp")], ids=["guarded", "bare"])
def test_nothing_survives_the_trainer(without: tuple[str, ...]) -> None:
    script = (
        "from posttrain.rewards.sandbox import *; import threading\n"
        f"box = Sandbox(2, without={without}); print(box._process.pid, flush=True)\n"
        "code = 'import time, signal; signal.signal(15, signal.SIG_IGN); time.sleep(1000)'\n"
        "run_tests(code, tests=['assert f(1)'], limits=Limits(wall=1000), sandbox=box)"
    )
    trainer = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    first = psutil.Process(int(trainer.stdout.readline()))
    time.sleep(1.0)
    family = [first, *first.children(recursive=True)]
    assert len(family) >= 3
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    trainer.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


def test_a_sandbox_that_died_starts_again() -> None:
    from posttrain.rewards.sandbox.client import _shared

    assert run_tests(SQUARE, tests=TASK, limits=Limits()).status == "passed"
    os.kill(_shared.get()._process.pid, signal.SIGKILL)
    time.sleep(0.5)
    assert run_tests(SQUARE, tests=TASK, limits=Limits()).status == "unusable"
    assert run_tests(SQUARE, tests=TASK, limits=Limits()).status == "passed"


def test_a_trainer_that_is_not_root() -> None:
    """Guards without privileges: user namespaces, Landlock, the filter of system calls."""
    python = "/usr/bin/python3"
    if (
        os.getuid() != 0
        or not Path(python).exists()
        or subprocess.run([python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], check=False).returncode
    ):
        pytest.skip("needs root and a Python 3.11 that other users may run")
    script = (
        "from posttrain.rewards.sandbox import *\n"
        "import os; print(os.getuid(), *active_guards())\n"
        "for code in ('def f(x): return x * x', 'import os\\ndef f(x): os.kill(-1, 9)', 'def f(x): open(\"/etc/hostname\").read()'):\n"
        f" print(run_tests(code, tests={TASK}, limits=Limits(wall=3.0)).status)"
    )
    told = subprocess.run(
        [python, "-c", script], cwd=ROOT, user=65534, group=65534, extra_groups=[], capture_output=True, text=True, check=True
    )
    guards, *statuses = told.stdout.splitlines()
    assert statuses == ["passed", "failed", "failed"]
    assert guards.startswith("65534 own-process")
    assert "seccomp" in guards


def test_a_fork_of_the_trainer_has_a_sandbox_of_its_own() -> None:
    guards = active_guards()
    pid = os.fork()
    if pid == 0:
        from posttrain.rewards.sandbox import client

        passed = run_tests(SQUARE, tests=TASK, limits=Limits()).status == "passed" and active_guards() == guards
        client._shared.close()
        os._exit(0 if passed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert run_tests(SQUARE, tests=TASK, limits=Limits()).status == "passed"


def test_temporary_folders_are_removed(tmp_path: Path) -> None:
    before = set(Path("/tmp").glob("posttrain-sandbox-*"))
    box = Sandbox(1, without=["namespaces"])
    assert run_tests("open('x', 'w').write('y')\ndef f(x): return x * x", tests=TASK, limits=SHORT, sandbox=box).status == "passed"
    box.close()
    assert set(Path("/tmp").glob("posttrain-sandbox-*")) <= before
