"""JSON over HTTP with a server that may be slow, busy or away."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from posttrain.rewards.http_replies import body_of, explanation_of

LONGEST_PAUSE = 30.0


class ServerError(RuntimeError):
    """The server did not do what it was asked. status: of its reply, 0 where there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message, status)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


class NoConnection(ServerError):
    """Nobody answers, or the connection broke."""


class NoReplyInTime(ServerError):
    """The server took the request and has not answered it within the time given."""


class Server:
    """A server at `url`.

    key_variable: environment variable that holds the API key; None for none. timeout: seconds of one request, its whole reply included.
    retries: after the first try, where the connection fails or the server reports that it failed (5xx); a request that it refuses (4xx)
    or does not answer in time is not sent again. pause: seconds before the first retry, twice as long before each further one.
    """

    def __init__(self, url: str, *, key_variable: str | None = None, timeout: float = 600.0, retries: int = 3, pause: float = 1.0) -> None:
        self.url, self.key_variable = url.rstrip("/"), key_variable
        self.timeout, self.retries, self.pause = timeout, retries, pause

    def get(self, path: str, *, timeout: float | None = None, retries: int | None = None) -> Any:
        """The reply to GET, as JSON; None where it is empty. Raises ServerError."""
        return self._tried("GET", path, None, timeout, retries)

    def post(self, path: str, body: Mapping[str, Any] | None = None, *, timeout: float | None = None, retries: int | None = None) -> Any:
        """The reply to POST, as JSON; None where it is empty. Raises ServerError."""
        return self._tried("POST", path, json.dumps(body or {}).encode(), timeout, retries)

    def call(self, method: str, **kwargs: str) -> list[Any]:
        """What a method of every worker returns (`/collective_rpc`, which vLLM has in its development mode). Raises ServerError."""
        reply = self.post("/collective_rpc", {"method": method, "kwargs": kwargs, "timeout": self.timeout})
        results = reply.get("results") if isinstance(reply, dict) else None
        if not isinstance(results, list) or not results or not all(isinstance(result, dict) for result in results):
            raise ServerError(f"{self.url}/collective_rpc: {method} returned {json.dumps(reply)[:200]}")
        return results

    def _tried(self, verb: str, path: str, body: bytes | None, timeout: float | None, retries: int | None) -> Any:
        tries = (self.retries if retries is None else retries) + 1
        for attempt in range(tries):
            try:
                return self._once(verb, path, body, self.timeout if timeout is None else timeout)
            except ServerError as error:
                passing = isinstance(error, NoConnection) or error.status >= 500
                if not passing or attempt == tries - 1:
                    raise
                time.sleep(min(LONGEST_PAUSE, self.pause * 2**attempt))
        raise AssertionError("unreachable")

    def _once(self, verb: str, path: str, body: bytes | None, timeout: float) -> Any:
        key = os.environ.get(self.key_variable) if self.key_variable else None
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        request = urllib.request.Request(self.url + path, body, headers, method=verb)
        deadline = time.monotonic() + timeout
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                text = body_of(response, deadline)
            return json.loads(text) if text.strip() else None
        except urllib.error.HTTPError as error:
            raise ServerError(f"{self.url}{path}: HTTP {error.code}: {explanation_of(error)}", error.code) from error
        except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, TimeoutError):
                raise NoReplyInTime(f"{self.url}{path}: no reply within {timeout:g} s") from error
            raise NoConnection(f"no connection to {self.url}{path}: {reason or type(error).__name__}") from error
        except (ValueError, RecursionError) as error:
            raise ServerError(f"{self.url}{path}: the reply is no JSON: {error}") from error
