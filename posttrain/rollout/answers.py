"""The answers of a run as they grow: their tokens, log-probabilities, random numbers and ends, in arrays on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posttrain.models.decoding import refuse_empty
from posttrain.rollout.base import Request
from posttrain.rollout.draws import sample_keys, uniforms
from posttrain.rollout.stops import Stops
from posttrain.types import Completion

STOPPED, CUT = 1, 2


class Answers:
    """S answers of at most `limit` tokens; answers to one request follow each other, in the order of the requests.

    steered: whether to keep log-probabilities of the distribution that is drawn from besides.

    Raises DataError for a prompt without tokens.
    """

    def __init__(self, requests: Sequence[Request], limit: int, stops: Stops, *, steered: bool = False) -> None:
        refuse_empty([request.prompt for request in requests])
        self.requests, self.limit, self.stops = requests, limit, stops
        self.first = np.cumsum([0, *(request.samples for request in requests)])
        total = int(self.first[-1])
        keys = [sample_keys(request.seed, request.samples) for request in requests]
        self.keys = np.concatenate(keys) if keys else np.zeros(0, np.uint64)
        self.tokens = np.empty((total, limit), np.int32)  # memory that is not written to is not taken
        self.logps = np.empty((total, limit), np.float32)
        self.drawn = np.empty((total, limit), np.float32) if steered else None
        self.counts = np.zeros(total, np.int64)
        self.ends = np.zeros(total, np.int8)

    def rows_of(self, request: int) -> np.ndarray:
        """The places of a request's answers."""
        return np.arange(self.first[request], self.first[request + 1])

    def uniforms(self, rows: np.ndarray) -> np.ndarray:
        """The random number of the next token of each row, float64 [B]."""
        return uniforms(self.keys[rows], self.counts[rows])

    def add(self, rows: np.ndarray, tokens: np.ndarray, logps: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Put one token behind each of the answers `rows` [B]; returns which go on, bool [B]. logps, drawn: see Completion.

        Raises FloatingPointError where a log-probability is no number.
        """
        if np.isnan(logps).any():
            raise FloatingPointError("the model's logits are not finite, so nothing can be sampled")
        self.tokens[rows, self.counts[rows]] = tokens
        self.logps[rows, self.counts[rows]] = logps
        if self.drawn is not None:
            self.drawn[rows, self.counts[rows]] = drawn
        self.counts[rows] += 1
        stopped = self.stops.reached(tokens, self.tokens, rows, self.counts[rows])
        ends = np.where(stopped, STOPPED, np.where(self.counts[rows] == self.limit, CUT, 0))
        self.ends[rows] = ends
        return ends == 0

    def completions(self) -> list[list[Completion]]:
        """All answers, by request."""
        return [[self._completion(row) for row in self.rows_of(request)] for request in range(len(self.requests))]

    def _completion(self, row: int) -> Completion:
        count = self.counts[row]
        finish = "stop" if self.ends[row] == STOPPED else "length"
        drawn = None if self.drawn is None else self.drawn[row, :count].copy()
        return Completion(self.tokens[row, :count].copy(), self.logps[row, :count].copy(), finish, drawn)  # type: ignore[arg-type]
