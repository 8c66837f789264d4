"""A small process that forks the sandbox's processes. It is started fresh (no memory, files or secrets of the trainer), finds out which
guards the machine allows, moves into namespaces of its own where it may, and then only ever forks, waits and kills.

It never reads a program or a test: those travel from the trainer to the process of the tests, which is forked before they are sent.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from posttrain.rewards.sandbox import driver, linux, solution
from posttrain.rewards.sandbox.cell import MEGABYTE, NAMESPACES, USER_ID, Guarded, enter
from posttrain.rewards.sandbox.guards import settle
from posttrain.rewards.sandbox.limits import Limits
from posttrain.rewards.sandbox.paths import TEMPORARY

REQUEST = 4096  # bytes of a request
GRACE = 3.0  # seconds beyond its wall limit after which a program is ended even if the trainer does not ask
PRELOADED = (
    "abc", "array", "base64", "bisect", "calendar", "cmath", "collections", "contextlib", "copy", "csv", "dataclasses",
    "datetime", "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "inspect", "io", "itertools", "json", "math",
    "numbers", "operator", "os", "queue", "random", "re", "statistics", "string", "struct", "sys", "textwrap", "threading",
    "time", "traceback", "typing", "unicodedata", "uuid",
)  # fmt: skip


@dataclass
class Run:
    """A program and its tests: two processes, their folders, and the socket whose end means the run's end."""

    life: int
    pids: tuple[int, int]
    folders: tuple[str, ...]
    deadline: float


def main(control: int, without: str) -> None:
    """control: socket to the trainer. without: guards to leave out, by commas."""
    for name in PRELOADED:
        importlib.import_module(name)
    sys.path.pop(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    guarded, own_pids = settle(frozenset(filter(None, without.split(","))))
    end = socket.socket(fileno=control)
    end.send(json.dumps(sorted(guarded.guards)).encode())
    gc.collect()
    gc.freeze()
    Forkserver(end, guarded, own_pids).serve()


class Forkserver:
    """own_pids: descriptor of this process's pid namespace, None without namespaces."""

    def __init__(self, control: socket.socket, guarded: Guarded, own_pids: int | None) -> None:
        self._control, self._guarded, self._own_pids = control, guarded, own_pids
        self._runs: dict[int, Run] = {}
        self._count = 0
        self._first_uid = 0x60000000 + int.from_bytes(os.urandom(2), "big") % 2**12 * 2**16  # other trainers have others
        self._parent = os.getppid()

    def serve(self) -> NoReturn:
        """Until the trainer is gone; then nothing of ours is left."""
        poll = select.poll()
        poll.register(self._control.fileno(), select.POLLIN)
        while os.getppid() == self._parent:
            for fd, _ in poll.poll(1000):
                if fd != self._control.fileno():
                    self._end(fd, poll)
                elif not self._accept(poll):
                    self._end_all(poll)
                    os._exit(0)
            self._end_late(poll)
        self._end_all(poll)
        os._exit(0)

    def _accept(self, poll: select.poll) -> bool:
        message, fds, _, _ = socket.recv_fds(self._control, REQUEST, 2)
        if not message:
            return False
        life, trainer = fds
        try:
            run = self._start(Limits(**json.loads(message)), life, trainer)
        except OSError as error:
            os.write(life, json.dumps({"refused": str(error)}).encode())
            os.close(life)
            return True
        finally:
            os.close(trainer)
        self._runs[life] = run
        poll.register(life, select.POLLIN)
        return True

    def _start(self, limits: Limits, life: int, trainer: int) -> Run:
        first, second = socket.socketpair()
        ends = (first.detach(), second.detach())
        size = limits.message * MEGABYTE
        folders: list[str] = []
        pids: list[int] = []
        try:
            pids.append(self._fork(limits, [ends[0]], folders, lambda: solution.main(ends[0], size)))
            pids.append(self._fork(limits, [trainer, ends[1]], folders, lambda: driver.main(trainer, ends[1], size)))
        except OSError:
            for pid in pids:
                self._kill(pid)
            _remove(folders)
            raise
        finally:
            for fd in ends:
                os.close(fd)
        return Run(life, (pids[0], pids[1]), tuple(folders), time.monotonic() + limits.wall + GRACE)

    def _fork(self, limits: Limits, keep: Sequence[int], folders: list[str], body: Callable[[], None]) -> int:
        self._count += 1
        uid = self._first_uid + self._count % 2**16
        folder = self._folder(uid, folders)
        with self._new_pids():
            pid = os.fork()
            if pid == 0:
                _run_enclosed(self._guarded, limits, keep, folder, uid, body)
        return pid

    @contextlib.contextmanager
    def _new_pids(self) -> Iterator[None]:
        """A child forked here is the first process of a pid namespace: all that it starts ends with it."""
        if self._own_pids is None:
            yield
            return
        linux.unshare(linux.NEWPID)
        try:
            yield
        finally:
            linux.setns(self._own_pids, linux.NEWPID)

    def _folder(self, uid: int, folders: list[str]) -> str:
        if NAMESPACES in self._guarded.guards:
            return TEMPORARY
        folder = tempfile.mkdtemp(prefix="posttrain-sandbox-")
        folders.append(folder)
        if USER_ID in self._guarded.guards:
            os.chown(folder, uid, uid)
        return folder

    def _end(self, life: int, poll: select.poll) -> None:
        """Kills what is left of a run and says how much processor time its processes used."""
        run = self._runs.pop(life)
        poll.unregister(life)
        report = {"cpu": max([self._kill(pid) for pid in run.pids])}
        self._sweep()
        _remove(run.folders)
        try:
            os.write(life, json.dumps(report).encode())
        except OSError:
            report.clear()  # the trainer has gone
        os.close(life)

    def _end_late(self, poll: select.poll) -> None:
        for run in list(self._runs.values()):
            if time.monotonic() > run.deadline:
                self._end(run.life, poll)

    def _end_all(self, poll: select.poll) -> None:
        for life in list(self._runs):
            self._end(life, poll)

    def _kill(self, pid: int) -> float:
        """Ends a process and its group; the seconds of processor time that it had used."""
        for kill in (os.killpg, os.kill):
            try:
                kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        used = os.wait4(pid, 0)[2]
        return used.ru_utime + used.ru_stime

    def _sweep(self) -> None:
        """Without a pid namespace, what a program left behind has become a child of this process: every one that is of no run."""
        if self._own_pids is not None or not linux.LINUX:
            return
        known = {pid for run in self._runs.values() for pid in run.pids}
        while strays := set(_children()) - known:
            for pid in strays:
                os.kill(pid, signal.SIGKILL)
            for pid in strays:
                os.waitpid(pid, 0)


def _children() -> list[int]:
    pid = os.getpid()
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as listed:
        return [int(word) for word in listed.read().split()]


def _run_enclosed(guarded: Guarded, limits: Limits, keep: Sequence[int], folder: str, uid: int, body: Callable[[], None]) -> NoReturn:
    """In a forked process: encloses it, then runs `body`; the process ends with it."""
    try:
        enter(guarded, limits, keep, folder, uid)
        body()
    finally:
        os._exit(0)


def _remove(folders: Sequence[str]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
