"""The trainer's side of the sandbox: starts the process that forks, sends it programs, collects verdicts under a deadline."""

from __future__ import annotations

import atexit
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from posttrain.rewards.sandbox import linux
from posttrain.rewards.sandbox.assertions import imports_of
from posttrain.rewards.sandbox.limits import Limits, Outcome, Status
from posttrain.rewards.sandbox.wire import Channel, ConnectionLost

log = logging.getLogger(__name__)
BOOT = "import sys; sys.path.insert(0, sys.argv[2]); from posttrain.rewards.sandbox.zygote import main; main(int(sys.argv[1]), sys.argv[3])"
ROOT = str(Path(__file__).resolve().parents[3])
START_SECONDS = 60.0
END_SECONDS = 30.0
LONGEST_REPORT = 4096
LONGEST_JOB = 1 << 28
MOST_PROGRAMS = 64  # at the same time
NETWORK_GUARDS = ("namespaces", "network-namespace", "seccomp")
FILE_GUARDS = ("namespaces", "landlock", "user-id")
ALWAYS = ("own-process", "clean-environment", "resource-limits")


class SandboxError(RuntimeError):
    """The sandbox itself failed: nothing can be said of the program."""


@dataclass
class Tally:
    """What the process of the tests has told so far."""

    total: int
    passed: dict[int, bool] = field(default_factory=dict)
    error: str | None = None
    end: str | None = None

    def add(self, message: dict[str, Any]) -> None:
        """One message; the first error is kept."""
        self.total = message.get("total", self.total)
        if "test" in message:
            self.passed[message["test"]] = message["passed"]
        self.end = message.get("end")
        self.error = self.error or message.get("error")

    def outcome(self, status: Status | None, error: str | None, seconds: float) -> Outcome:
        """The verdict; `status` where the run did not end by itself."""
        passed = sum(self.passed.values())
        if status is None:
            status = "passed" if self.end == "finished" and 0 < self.total == passed else "failed"
        first = None if status == "passed" else self.error or error or "no test asserts anything"
        return Outcome(passed, self.total, status, first, seconds)


class Sandbox:
    """Runs programs, several at once from several threads. processes: programs at the same time. without: guards not to use."""

    def __init__(self, processes: int | None = None, without: Sequence[str] = ()) -> None:
        if os.name != "posix":
            raise SandboxError("code can be tested on POSIX systems only")
        self._slots = threading.BoundedSemaphore(processes or MOST_PROGRAMS)
        self._lock = threading.Lock()
        self._without = ",".join(without)
        self._process, self._control, self.guards = self._start()

    def _start(self) -> tuple[subprocess.Popen[bytes], socket.socket, tuple[str, ...]]:
        kind = socket.SOCK_SEQPACKET if linux.LINUX else socket.SOCK_STREAM
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        command = [sys.executable, "-S", "-s", "-P", "-B", "-c", BOOT, str(theirs.fileno()), ROOT, self._without]
        environment = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "LANG": "C.UTF-8"}
        with theirs:
            process = subprocess.Popen(
                command,
                env=environment,
                pass_fds=[theirs.fileno()],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        ours.settimeout(START_SECONDS)
        try:
            guards = json.loads(ours.recv(LONGEST_REPORT))
        except (OSError, ValueError) as error:
            process.kill()
            process.wait()
            raise SandboxError("the code sandbox did not start") from error
        return process, ours, (*ALWAYS, *guards)

    def run(self, job: dict[str, Any], limits: Limits) -> Outcome:
        """job: the arguments of `driver.Tests.run`."""
        with self._slots, ExitStack() as opened:
            started = time.monotonic()
            life, trainer = self._request(limits, opened)
            tally = Tally(len(job["tests"]))
            status, error = self._follow(Channel(trainer, LONGEST_JOB, started + limits.wall), job, tally)
            report = self._finish(life)
            if report["cpu"] >= limits.cpu - 0.05 and status == "died":
                status, error = "timeout", f"more than {limits.cpu} s of processor time"
            return tally.outcome(status, error, time.monotonic() - started)

    def _request(self, limits: Limits, opened: ExitStack) -> tuple[socket.socket, socket.socket]:
        (life, far_life), (trainer, far_trainer) = (map(opened.enter_context, socket.socketpair()) for _ in range(2))
        request = json.dumps(asdict(limits)).encode()
        with self._lock, far_life, far_trainer:
            try:
                socket.send_fds(self._control, [request], [far_life.fileno(), far_trainer.fileno()])
            except OSError as error:
                raise SandboxError("the code sandbox has ended") from error
        return life, trainer

    def _follow(self, channel: Channel, job: dict[str, Any], tally: Tally) -> tuple[Status | None, str | None]:
        """Until the end of the tests: how they ended, and why, if not by themselves."""
        try:
            channel.send(job)
            while tally.end is None:
                tally.add(channel.receive())
        except TimeoutError:
            tally.error = None
            return "timeout", "out of time"
        except ConnectionLost:
            return "died", "the process of the tests ended"
        if tally.end in ("unusable", "died"):
            return ("unusable" if tally.end == "unusable" else "died"), None
        return None, None

    def _finish(self, life: socket.socket) -> dict[str, Any]:
        """Ends what is left of a run; returns when none of its processes exists any more."""
        life.shutdown(socket.SHUT_WR)
        life.settimeout(END_SECONDS)
        try:
            report = json.loads(life.recv(LONGEST_REPORT))
        except (OSError, ValueError) as error:
            raise SandboxError("the code sandbox has ended") from error
        if "refused" in report:
            raise SandboxError(f"the code sandbox could not start a process: {report['refused']}")
        return report

    @property
    def ended(self) -> bool:
        """Whether its process is gone."""
        return self._process.poll() is not None

    def close(self) -> None:
        """Ends the sandbox and everything in it."""
        self._control.close()
        self._process.wait()


class _Shared:
    """The sandbox of this process, started at the first use; a fork of the process gets its own."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a fork: the lock may have been held by a thread that does not exist here."""
        self._lock = threading.Lock()
        self._sandbox: Sandbox | None = None

    def get(self) -> Sandbox:
        with self._lock:
            if self._sandbox is None:
                self._sandbox = Sandbox()
                _announce(self._sandbox.guards)
            return self._sandbox

    def close(self) -> None:
        """Ends it."""
        with self._lock:
            if self._sandbox is not None:
                self._sandbox.close()
            self._sandbox = None

    def close_if_ended(self) -> None:
        """One that was killed is not used again: the next program starts a new one."""
        with self._lock:
            if self._sandbox is not None and self._sandbox.ended:
                self._sandbox.close()
                self._sandbox = None


_shared = _Shared()
atexit.register(_shared.close)
if os.name == "posix":
    os.register_at_fork(after_in_child=_shared.forget)


def _announce(guards: Sequence[str]) -> None:
    log.info("code sandbox: %s", ", ".join(guards))
    if not set(guards) & set(NETWORK_GUARDS):
        log.warning("code sandbox: this machine allows no network guard: sampled programs can reach the network")
    if not set(guards) & set(FILE_GUARDS):
        log.warning("code sandbox: this machine allows no file guard: sampled programs can read and change what this user can")


def active_guards() -> tuple[str, ...]:
    """What protects this machine from the programs that are tested, by name; see the package's documentation."""
    return _shared.get().guards


def run_tests(code: str, *, tests: Sequence[str], limits: Limits, setup: str = "", sandbox: Sandbox | None = None) -> Outcome:
    """Each test (MBPP: `assert f(1) == 2`) on its own, after `setup`, which belongs to the tests; its imports are the program's too."""
    job = {"prelude": imports_of(setup), "code": code, "setup": setup, "tests": list(tests), "entry_point": None}
    return _run(job, limits, sandbox)


def run_check(code: str, test_source: str, entry_point: str, limits: Limits, *, setup: str = "", sandbox: Sandbox | None = None) -> Outcome:
    """`check(candidate)` of `test_source` (HumanEval); each of its assertions is a test. setup: the task's prompt, whose helper functions
    belong to the tests as well as to the program."""
    job = {"prelude": setup, "code": code, "setup": setup, "tests": [test_source], "entry_point": entry_point}
    return _run(job, limits, sandbox)


def _run(job: dict[str, Any], limits: Limits, sandbox: Sandbox | None) -> Outcome:
    started = time.monotonic()
    try:
        return (sandbox or _shared.get()).run(job, limits)
    except SandboxError as error:
        if sandbox is None:
            _shared.close_if_ended()
        return Outcome(0, len(job["tests"]), "unusable", str(error), time.monotonic() - started)
