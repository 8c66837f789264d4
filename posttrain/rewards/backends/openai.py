"""A judge behind an OpenAI-style endpoint (chat completions): hosted services, vLLM, llama.cpp, ..."""

from __future__ import annotations

import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.rewards.backends.base import Backend, CutOff, Question, Silence
from posttrain.rewards.http_replies import body_of, explanation_of

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}
CUT_OFF = {"length": "raise max_new_tokens", "content_filter": "the endpoint withheld the rest"}
LARGEST_REPLY = 1 << 22
LONGEST_PAUSE = 30.0


class _Refused(Exception):
    """The endpoint does not take the request: asking again is in vain."""


class _Failed(Exception):
    """The endpoint failed this time. pause: seconds it asks to wait, 0 if it does not say."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class OpenAI(Backend):
    """url: of the API up to its version (`http://localhost:8000/v1`). model: its name there.

    key_variable: environment variable that holds the API key; null for none. concurrency: requests at a time. timeout: seconds of one
    request, its whole reply included. retries: after the first try, on failures that may pass (5xx, 429, no connection, no time, garbage),
    with pauses of `pause` * 2^i seconds, or as long as the endpoint asks. patience: after so many questions in a row without a reply the
    others of a call are given up at once, so that an endpoint that is away does not hold up training for long.
    """

    def __init__(
        self,
        *,
        url: str,
        model: str,
        key_variable: str | None = None,
        temperature: float = 0.0,
        max_new_tokens: int = 512,
        concurrency: int = 8,
        timeout: float = 60.0,
        retries: int = 3,
        pause: float = 1.0,
        patience: int = 16,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(Problem("reward.judge.backend.url", f"expected http://... or https://..., got {url!r}"))
        self.url, self.model, self.key_variable = url.rstrip("/") + "/chat/completions", model, key_variable
        self.body = {"model": model, "temperature": temperature, "max_tokens": max_new_tokens, **(extra or {})}
        self.concurrency, self.timeout, self.retries, self.pause, self.patience = concurrency, timeout, retries, pause, patience

    def start(self) -> None:
        """See `Backend`."""
        self.check()

    def check(self) -> None:
        """Raises ConfigError where the variable of the API key is not set."""
        if self.key_variable is not None and not os.environ.get(self.key_variable):
            hint = f"export {self.key_variable}=..."
            raise ConfigError(Problem("reward.judge.backend.key_variable", f"the variable {self.key_variable} is not set", hint))

    def ask(self, questions: Sequence[Question]) -> list[str | Silence]:
        """See `Backend`."""
        call = _Call(self)
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge")
        try:
            return list(pool.map(call.ask, questions))
        finally:
            call.over = True
            pool.shutdown(wait=False, cancel_futures=True)

    def once(self, messages: Sequence[Mapping[str, Any]]) -> str | CutOff:
        """One request. Raises _Failed or _Refused."""
        try:
            return _content(json.loads(self._post({**self.body, "messages": list(messages)})))
        except urllib.error.HTTPError as error:
            raise _of_status(error) from error
        except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
            raise _Failed(f"no reply: {error}") from error
        except (ValueError, RecursionError) as error:
            raise _Failed(f"garbage: {error}") from error

    def _post(self, body: Mapping[str, Any]) -> bytes:
        key = os.environ.get(self.key_variable) if self.key_variable else None
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        deadline = time.monotonic() + self.timeout
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            return body_of(response, deadline, most=LARGEST_REPLY)


class _Call:
    """The questions of one call: they share how many in a row got no reply. over: nobody waits any more."""

    def __init__(self, endpoint: OpenAI) -> None:
        self.endpoint, self.over = endpoint, False
        self._lock, self._lost = threading.Lock(), 0

    def ask(self, question: Question) -> str | Silence:
        """A reply, after retries."""
        reason = "the endpoint gives no replies"
        for attempt in range(self.endpoint.retries + 1):
            if self.over or self._lost >= self.endpoint.patience:
                return Silence(f"given up: {reason}")
            try:
                reply = self.endpoint.once(question.messages)
            except _Refused as error:
                reason = str(error)
                break
            except _Failed as error:
                reason = str(error)
                self._wait(attempt, error.pause)
            else:
                self._lost = 0
                return reply
        with self._lock:
            self._lost += 1
        return Silence(reason)

    def _wait(self, attempt: int, asked: float) -> None:
        if attempt < self.endpoint.retries:
            pause = self.endpoint.pause * 2**attempt * random.uniform(0.5, 1.0)  # apart, so that retries do not come all at once
            time.sleep(min(LONGEST_PAUSE, max(asked, pause)))


def _content(reply: Any) -> str | CutOff:
    """The text of a chat completion, half a surrogate pair in it as U+FFFD. Raises ValueError where it is none."""
    try:
        content, finish = reply["choices"][0]["message"]["content"], reply["choices"][0].get("finish_reason")
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"no chat completion, {json.dumps(reply)[:200]}") from error
    if not isinstance(content, str):
        raise ValueError("the completion has no text")
    text = content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return CutOff(f"the reply ended with finish_reason={finish}: {CUT_OFF[finish]}", text) if finish in CUT_OFF else text


def _of_status(error: urllib.error.HTTPError) -> Exception:
    reason = f"HTTP {error.code}: {explanation_of(error)}"
    asked = error.headers.get("Retry-After", "")
    pause = float(asked) if asked.isascii() and asked.isdigit() else 0.0
    return _Failed(reason, pause) if error.code in RETRIED else _Refused(reason)
