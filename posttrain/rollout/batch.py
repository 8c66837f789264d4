"""What is being answered right now: cohorts, and one entry a live answer in the order of their rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from posttrain.rollout.cache import Cohort


class Batch:
    """B live answers.

    cohorts: non-empty ones. rows: int64 [B] on the host, where each stands in the run's `Answers`. tokens: int64 [B], the newest of each.
    positions: int64 [B], theirs. seen: bool [B, V], tokens that occurred, for the repetition penalty; None without one. alive: bool [B] on
    the host; the others have ended and are carried along until `settle` drops them.
    """

    def __init__(self, cohorts: Sequence[Cohort], rows: np.ndarray, tokens: Tensor, positions: Tensor, seen: Tensor | None) -> None:
        self.cohorts = list(cohorts)
        self.rows, self.tokens, self.positions, self.seen = rows, tokens, positions, seen
        self.alive = np.ones(len(rows), bool)

    @classmethod
    def empty(cls, device: torch.device) -> Batch:
        """Nobody yet."""
        nothing = torch.zeros(0, dtype=torch.long, device=device)
        return cls([], np.zeros(0, np.int64), nothing, nothing, None)

    def __len__(self) -> int:
        return len(self.rows)

    def reserved(self) -> int:
        """Tokens that the cache may come to hold."""
        return sum(cohort.reserved() for cohort in self.cohorts)

    def advance(self, tokens: Tensor, alive: np.ndarray) -> None:
        """Make `tokens` [B], drawn just now, the newest; drop the answers that are not `alive`, bool [B]."""
        self.tokens = tokens
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        self.alive = alive
        self.drop()

    def settle(self, going: np.ndarray) -> None:
        """Of the answers that were alive, note which still are, bool [alive]. The others are dropped once they are a quarter of all, or all
        of a cohort's: each time that shapes change costs a few steps."""
        self.alive[self.alive] = going
        cuts = np.cumsum([len(cohort) for cohort in self.cohorts])[:-1]
        ended = any(not part.any() for part in np.split(self.alive, cuts))
        if ended or 4 * np.count_nonzero(self.alive) <= 3 * len(self):
            self.drop()

    def drop(self) -> None:
        """Drop the answers that are not alive."""
        if not self.alive.all():
            self._keep(self.alive)

    def join(self, other: Batch) -> None:
        """Take in another batch's answers behind the own ones; both have `seen`, or this one is empty, or neither has it."""
        if other.seen is not None:
            self.seen = other.seen if self.seen is None else torch.cat([self.seen, other.seen])
        self.cohorts += other.cohorts
        self.rows = np.concatenate([self.rows, other.rows])
        self.alive = np.concatenate([self.alive, other.alive])
        self.tokens, self.positions = torch.cat([self.tokens, other.tokens]), torch.cat([self.positions, other.positions])

    def _keep(self, alive: np.ndarray) -> None:
        order, start = [], 0
        for cohort in self.cohorts:
            size = len(cohort)
            part = alive[start : start + size]
            order.append(start + (np.arange(size) if part.all() else cohort.keep(part)))
            start += size
        self.cohorts = [cohort for cohort in self.cohorts if len(cohort)]
        stay = np.concatenate(order)
        self.rows, self.alive = self.rows[stay], self.alive[stay]
        index = torch.from_numpy(stay).to(self.tokens.device)
        self.tokens, self.positions = self.tokens[index], self.positions[index]
        self.seen = None if self.seen is None else self.seen[index]
