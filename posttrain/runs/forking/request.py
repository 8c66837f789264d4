"""What is asked of a fork server, and the socket that goes down to every process below it."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import struct
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

SERVER = "POSTTRAIN_FORK_SERVER"  # where the socket is, see `address_of`, in the environment of the processes below a server
# What one run may have otherwise than the next: no library reads it while it is imported, or `server.become` sees to it.
PER_PROCESS = frozenset((
    "OMP_NUM_THREADS", "COLUMNS", "LINES", "PWD", "OLDPWD", "SHLVL", "_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
    "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED", "PL_SEED_WORKERS",
))  # fmt: skip
PREFIXES = ("POSTTRAIN_", "MLFLOW_", "_MLFLOW_", "SLURM_", "PYTEST_")
NUMBER = struct.Struct("<i")  # a process's number, 0 where the server starts none; then its exit code, negative for a signal


@dataclass(frozen=True)
class Request:
    """`python -m module arguments` in `folder`, on `cores`, with this environment. blocked: signals that wait."""

    module: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: str
    cores: Sequence[int]
    blocked: Sequence[int]

    @classmethod
    def of(cls, command: Sequence[str], environment: Mapping[str, str]) -> Request:
        """Of `[python, "-m", module, *arguments]`, here."""
        blocked = sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ())))
        return cls(command[2], command[3:], dict(environment), os.getcwd(), sorted(os.sched_getaffinity(0)), blocked)

    @classmethod
    def read(cls, text: bytes) -> Request:
        """From `as_json`."""
        return cls(**json.loads(text))

    def as_json(self) -> bytes:
        """For the server."""
        return json.dumps(asdict(self)).encode()


def read_by_imports(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that a forked process cannot have otherwise than its server."""
    return {key: value for key, value in environment.items() if key not in PER_PROCESS and not key.startswith(PREFIXES)}


def address_of(end: socket.socket) -> str:
    """How processes below know the socket again: a number alone may be another file there."""
    return f"{end.fileno()}:{os.fstat(end.fileno()).st_ino}"


def socket_at(address: str) -> int | None:
    """The file descriptor behind `address_of`, where this process has it."""
    with suppress(ValueError, OSError):
        number, inode = map(int, address.split(":"))
        found = os.fstat(number)
        if stat.S_ISSOCK(found.st_mode) and found.st_ino == inode:
            return number
    return None


def is_possible() -> bool:
    """Whether there can be a fork server: it needs sockets that keep messages apart, and descriptors of processes (Linux 5.3)."""
    if sys.platform != "linux":
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:  # not of this kernel, or not allowed in this container
        return False
    return True
