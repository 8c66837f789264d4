"""The process that an isolated component runs in: `python -m posttrain.rewards.worker IN OUT PARENT`.

It reads messages from the pipe IN, a pickled component first, then lists of answers, and writes a value for each answer to OUT as soon as
it is known. It ends when IN does, and with its parent, however that ends. What the component prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import resource
import signal
import sys
from collections.abc import Iterator
from typing import Any

from posttrain.rewards import pipes
from posttrain.rewards.base import Isolated, Unscored, said
from posttrain.types import Sample

PR_SET_PDEATHSIG = 1
INTERRUPT_SHARE = 0.8  # of the time of an answer after which it is interrupted
READY = "ready"


class OutOfTime(BaseException):
    """The answer's time is over. No Exception, so that `except Exception` in a component does not keep it."""


def main(arguments: list[str]) -> None:
    """See the module."""
    inputs, outputs, parent = map(int, arguments)
    end_with(parent)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with contextlib.suppress(EOFError, BrokenPipeError):
        serve(inputs, outputs)
    os._exit(0)  # not held up by threads of the component


def end_with(parent: int) -> None:
    """End this process when its parent ends (Linux), at once if that was before this call."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def serve(inputs: int, outputs: int) -> None:
    """Start the component, say READY or what went wrong, then score until the pipe ends."""
    try:
        component: Isolated = pickle.loads(pipes.read(inputs))
        component.start()
        limit_memory(component.memory_gb)
    except BaseException as error:
        pipes.write(outputs, said(error))
        return
    signal.signal(signal.SIGALRM, _interrupt)
    pipes.write(outputs, READY)
    while True:
        for sample in pipes.read(inputs):
            pipes.write(outputs, score(component, sample))


def score(component: Isolated, sample: Sample) -> float:
    """The component's value of one answer; Unscored with the reason where it fails or takes too long."""
    try:
        with alarm(component.timeout * INTERRUPT_SHARE):
            (value,) = component.measure([sample])
            return value if isinstance(value, Unscored) else float(value)
    except OutOfTime:
        return Unscored("took too long")
    except BaseException as error:  # SystemExit of a user's function included
        return Unscored(said(error))


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in here after `seconds`."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _interrupt(*_: Any) -> None:
    raise OutOfTime


def limit_memory(gb: float | None) -> None:
    """Let this process take `gb` GiB more of writable memory than it has (Linux)."""
    if gb is None or sys.platform != "linux":
        return
    with open("/proc/self/status", encoding="utf-8") as lines:
        now = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
    limit = now + int(gb * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    main(sys.argv[1:])
