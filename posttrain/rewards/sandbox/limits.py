"""What a program may use, and what became of its tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["passed", "failed", "timeout", "died", "unusable"]


@dataclass(frozen=True)
class Limits:
    """Of one program; of its tests, which run in a process of their own, the same again.

    wall: seconds, all tests together. cpu: seconds of processor time. memory: MiB of address space. file: MiB of one file. disk: MiB of
    the temporary folder. open_files: descriptors. threads: threads; processes cannot be started where seccomp works, and count as
    threads elsewhere. message: MiB of one returned value.
    """

    wall: float = 10.0
    cpu: int = 5
    memory: int = 512
    file: int = 8
    disk: int = 16
    open_files: int = 64
    threads: int = 16
    message: int = 4


@dataclass(frozen=True)
class Outcome:
    """passed: tests that passed. total: tests there are. seconds: wall time.

    status: passed = all of them; failed; timeout = a limit on time ended it; died = its process ended before the tests did; unusable =
    nothing can be said of the program (tests without an assertion or that pass what cannot be sent, a sandbox that did not start).
    error: the first thing that went wrong, one line of printable characters that may have been written by the program; None if all passed.
    """

    passed: int
    total: int
    status: Status
    error: str | None
    seconds: float
