"""Messages between an isolated component's processes and this one: a length, then a pickle."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import struct
import time
from typing import Any

_LENGTH = struct.Struct("!Q")


class Slow(Exception):
    """No message came, or none was taken, in time."""


def write(descriptor: int, message: Any, seconds: float | None = None) -> None:
    """Write a message to a pipe. Raises OSError where nobody reads it, Slow where it is not taken after `seconds`; None waits as long as
    it takes.

    With a limit the pipe must be one that does not block (`os.set_blocking`): others hold up a write that is larger than their room.
    """
    content = pickle.dumps(message)
    data = memoryview(_LENGTH.pack(len(content)) + content)
    deadline = None if seconds is None else time.monotonic() + seconds
    while data:
        if not select.select([], [descriptor], [], _left(deadline))[1]:
            raise Slow
        with contextlib.suppress(BlockingIOError):
            data = data[os.write(descriptor, data) :]


def read(descriptor: int, seconds: float | None = None) -> Any:
    """The next message of a pipe. Raises EOFError at the pipe's end, Slow after `seconds`; None waits as long as it takes."""
    deadline = None if seconds is None else time.monotonic() + seconds
    (length,) = _LENGTH.unpack(_exactly(descriptor, _LENGTH.size, deadline))
    return pickle.loads(_exactly(descriptor, length, deadline))


def _exactly(descriptor: int, count: int, deadline: float | None) -> bytes:
    data = bytearray()
    while len(data) < count:
        if not select.select([descriptor], [], [], _left(deadline))[0]:
            raise Slow
        part = os.read(descriptor, min(count - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
