"""One process a device on this machine: start them, pass signals on, and end all when one dies."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from posttrain.cores import usable_cores
from posttrain.runs.forking.client import Process, end, start
from posttrain.runs.signals import HANDLED

GRACE_SECONDS = 30.0
POLL_SECONDS = 0.2
WITH_PARENT = "POSTTRAIN_WITH_PARENT"  # in the environment of a process that is to end when its standard input does


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_environment(rank: int, world: int, port: int, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of one rank, in torchrun's names.

    OMP_NUM_THREADS: its share of the cores that this process may use, or what `base` says where that is less: what `base` says was for one
    process, and now there are as many as ranks.
    """
    share = max(1, usable_cores(base) // world)
    given = base.get("OMP_NUM_THREADS", "")
    threads = min(share, int(given)) if given.isdecimal() and int(given) else share
    ours = {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "NODE_RANK": 0,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": threads,
    }  # fmt: skip
    return {**base, **{name: str(value) for name, value in ours.items()}}


def run_ranks(command: Sequence[str], world: int) -> int:
    """Run `command` once a rank; returns the exit code of the rank that ended first with an error, else 0.

    Stop signals go to every rank once. When a rank fails, the others get SIGTERM, and SIGKILL after a grace period: they may
    hang in a collective with the dead one. Ranks end by themselves when this process dies (see `posttrain.runs.worker`).
    """
    port = free_port()
    ranks = [start(command, rank_environment(rank, world, port, os.environ)) for rank in range(world)]
    with ending_with_us(ranks):
        return _wait(ranks)


def run_child(command: Sequence[str]) -> int:
    """Run `command` in a process that ends with this one; stop signals go to it, and it is waited for. Returns its exit code.

    A signal that came when the child was as good as done is for what it is a part of: this process gets it afterwards.
    """
    child = start(command, {**os.environ, WITH_PARENT: "1"})
    with ending_with_us([child]) as heard:
        code = shell_code(child.wait())
    if heard and not code:
        signal.raise_signal(heard[-1])
    return code


@contextmanager
def ending_with_us(processes: Sequence[Process]) -> Iterator[list[int]]:
    """Inside the block stop signals go to the processes, and into the list; at its end no process is left.

    Only the main thread may handle signals. Not for processes that are started inside the block: a signal may come between such a one's
    beginning and its entry in `processes`; see `heard_until_gone`.
    """
    with heard_until_gone(processes, lambda number: pass_on(number, processes)) as heard:
        yield heard


@contextmanager
def heard_until_gone(processes: Sequence[Process], then: Callable[[int], None] = lambda number: None) -> Iterator[list[int]]:
    """Inside the block stop signals go into the list, and `then` is called with each; at its end no process is left."""
    heard: list[int] = []

    def hear(number: int, _frame: FrameType | None) -> None:
        heard.append(number)
        then(number)

    handled = HANDLED if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, hear) for number in handled}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in processes:
            end(process)


def pass_on(number: int, processes: Iterable[Process]) -> None:
    """Sends the signal to those that have not ended."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _wait(ranks: Sequence[Process]) -> int:
    while any(process.poll() is None for process in ranks):
        for rank, process in enumerate(ranks):
            if code := process.poll():
                return _end_others(ranks, rank, code)
        time.sleep(POLL_SECONDS)
    return next((shell_code(code) for process in ranks if (code := process.poll())), 0)


def _end_others(ranks: Sequence[Process], number: int, code: int) -> int:
    """Let the other ranks finish (a stop signal ends them all alike), then end them. code: of the rank that has ended."""
    if code < 0:
        print(f"rank {number} was killed by {signal.Signals(-code).name}; ending the others", file=sys.stderr, flush=True)
    deadline = time.monotonic() + GRACE_SECONDS
    stopping = code in (*(128 + number for number in HANDLED), 2)
    for process in ranks:
        if process.poll() is None and not stopping:
            process.terminate()
    while any(process.poll() is None for process in ranks) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return shell_code(code)


def shell_code(returncode: int) -> int:
    """A process's return code as a shell would give it; death by another signal than a stop is a failure."""
    if returncode in (-signal.SIGINT, -signal.SIGTERM):
        return 128 - returncode
    return 1 if returncode < 0 else returncode
