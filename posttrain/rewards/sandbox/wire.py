"""Messages between processes: a length of four bytes, then JSON. A message is bounded, and nothing that is read is ever executed."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

HEADER = 4


class ConnectionLost(BaseException):
    """The other side is gone, or wrote what is not a message. No `except Exception` of a test catches it."""


class Channel:
    """One end of a stream socket. limit: bytes of a message. deadline: of `time.monotonic`, None for none; TimeoutError after it."""

    def __init__(self, end: socket.socket, limit: int, deadline: float | None = None) -> None:
        self._end, self._limit, self._deadline = end, limit, deadline

    def send(self, message: Any) -> None:
        """Writes a message; ValueError if it is too long."""
        data = json.dumps(message, separators=(",", ":")).encode()
        if len(data) > self._limit:
            raise ValueError(f"a message of {len(data)} bytes is longer than the limit of {self._limit}")
        self._wait()
        try:
            self._end.sendall(len(data).to_bytes(HEADER, "big") + data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ConnectionLost("the other process has ended") from error

    def receive(self) -> Any:
        """The next message."""
        length = int.from_bytes(self._read(HEADER), "big")
        if length > self._limit:
            raise ConnectionLost(f"a message of {length} bytes is longer than the limit of {self._limit}")
        data = self._read(length)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ConnectionLost("a message is not JSON") from error

    def _read(self, count: int) -> bytes:
        parts, missing = [], count
        while missing:
            self._wait()
            try:
                part = self._end.recv(min(missing, 1 << 16))
            except ConnectionResetError:
                part = b""
            if not part:
                raise ConnectionLost("the process ended")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _wait(self) -> None:
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._end.settimeout(left)
