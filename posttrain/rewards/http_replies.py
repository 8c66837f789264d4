"""What servers reply over HTTP, read with a bound on time and size."""

from __future__ import annotations

import time
import urllib.error
from http.client import HTTPException
from typing import Any

EXPLAINED = 2000  # bytes of an explanation that are read
SHOWN = 500  # characters of it that are shown


def body_of(response: Any, deadline: float, *, most: int | None = None) -> bytes:
    """A reply's body. deadline: on time.monotonic's clock. most: bytes.

    Raises TimeoutError where it trickles past the deadline, HTTPException where it is cut off, ValueError where it is longer than `most`.
    """
    body = bytearray()
    while part := response.read1(1 << 20):
        body += part
        if time.monotonic() > deadline:
            raise TimeoutError("the reply takes too long")
        if most is not None and len(body) > most:
            raise ValueError("the reply is too large")
    if response.length:  # what the headers promised and did not come
        raise HTTPException(f"the reply was cut off {response.length} bytes before its end")
    return bytes(body)


def explanation_of(error: urllib.error.HTTPError) -> str:
    """What a server says beside a status, in a line, as far as it comes."""
    try:
        with error:
            return " ".join(error.read(EXPLAINED).decode("utf-8", "replace").split())[:SHOWN]
    except (OSError, HTTPException) as broken:
        return f"({broken or type(broken).__name__})"
