"""A decoding step that always has the same shapes, so that on CUDA a graph replays it without the host's hundreds of launches.

What changes from token to token lies in tensors that stay where they are: tokens, positions, random numbers, and how many tokens each
cohort has. Keys that are not there yet, or that a sliding window has left behind, are read all the same and hidden by what is added to
their scores. A step holds as long as the batch's cohorts, their rows and their rooms do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from posttrain.rollout.attention import Decode, Pass, Seen
from posttrain.rollout.base import Sampling
from posttrain.rollout.batch import Batch
from posttrain.rollout.cache import Cohort, Pair
from posttrain.rollout.sampling import sample

HIDDEN = -1e30  # added to scores; a number, so that a prompt that a window has left behind altogether still has a softmax

Logits = Callable[[Tensor, Tensor, Pass], Tensor]


class Masked:
    """See attention.Reach. used: int64 [cohorts], tokens of every answer of a cohort in the cache, without the newest."""

    def __init__(self, cohorts: Sequence[Cohort], used: Tensor) -> None:
        self.used = dict(zip(cohorts, used, strict=True))
        self.masks: dict[tuple[Cohort, str, int | None, int], Tensor] = {}  # the same for all layers of a kind

    def own(self, cohort: Cohort, pair: Pair, window: int | None) -> Seen:
        """See Reach."""
        keys, values = (x[: len(cohort)] for x in pair.suffix)
        key = (cohort, "own", window, keys.shape[2])
        if key not in self.masks:
            place, newest = torch.arange(keys.shape[2], device=keys.device), self.used[cohort]
            seen = place <= newest
            self.masks[key] = hiding(seen if window is None else seen & (place > newest - window))
        return keys, values, self.masks[key]

    def prompt(self, cohort: Cohort, pair: Pair, window: int | None) -> Seen | None:
        """See Reach."""
        keys, values = pair.prefix
        length = keys.shape[2]
        padding = cohort.padding_of(length)
        if window is None:
            return keys, values, padding
        key = (cohort, "prompt", window, length)
        if key not in self.masks:
            place = torch.arange(length, device=keys.device)
            near = hiding(place > length - window + self.used[cohort])
            self.masks[key] = near if padding is None else near + padding
        return keys, values, self.masks[key]


def hiding(seen: Tensor) -> Tensor:
    """What is added to scores, float32: 0 where `seen`, else HIDDEN."""
    return torch.where(seen, 0.0, HIDDEN)


class FixedDecode(Decode):
    """See attention.Decode; the newest keys and values go where `used` says."""

    def __init__(self, cohorts: Sequence[Cohort], used: Tensor) -> None:
        super().__init__(cohorts)
        self.reach = Masked(cohorts, used)
        self.places = dict(zip(cohorts, used.split(1), strict=True))

    def append(self, cohort: Cohort, layer: nn.Module, keys: Tensor, values: Tensor) -> Pair:
        """See Decode."""
        return cohort.append_at(layer, keys, values, self.places[cohort])


class FixedStep:
    """One more token of every answer of a batch, whose `tokens` and `positions` are this step's own from now on.

    logits: (ids [B, 1], positions [B, 1], pass) -> [B, V]. pool: of CUDA graphs, for the memory that successive steps share. The first call
    runs the step as it is, which also makes whatever may not be made while a graph is captured; the second one on CUDA captures it.
    """

    def __init__(self, batch: Batch, logits: Logits, sampling: Sampling, pool: Any) -> None:
        self.of = shapes(batch)
        self.batch, self.logits, self.sampling, self.pool = batch, logits, sampling, pool
        device = batch.tokens.device
        batch.tokens, batch.positions = batch.tokens.clone(), batch.positions.clone()
        self.used = torch.tensor([cohort.used for cohort in batch.cohorts], device=device)
        self.uniform = torch.empty(len(batch), dtype=torch.float64, device=device)
        self.drawn = torch.empty(3, len(batch), dtype=torch.float64, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.calls = 0

    def fits(self, batch: Batch) -> bool:
        """Whether the batch still has this step's shapes."""
        return self.of == shapes(batch)

    def __call__(self, uniform: np.ndarray) -> np.ndarray:
        """uniform: float64 [B], a random number of each answer -> float64 [3, B], tokens and both their log-probabilities."""
        given = torch.from_numpy(uniform)
        self.uniform.copy_(given.pin_memory() if self.uniform.is_cuda else given, non_blocking=True)
        if self.calls == 1 and self.uniform.is_cuda:
            self.graph = self._captured()
        self.calls += 1
        if self.graph is None:
            self._run()
        else:
            self.graph.replay()
        return self.drawn.cpu().numpy()  # the one time that the host waits for the device

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):  # other threads may use the device
            self._run()
        return graph

    def _run(self) -> None:
        batch = self.batch
        hidden = FixedDecode(batch.cohorts, self.used)
        logits = self.logits(batch.tokens[:, None], batch.positions[:, None], hidden)
        tokens, *logps = sample(logits, self.uniform, self.sampling, batch.seen)
        self.drawn.copy_(torch.stack([tokens.double(), *(part.double() for part in logps)]))
        batch.tokens.copy_(tokens)
        batch.positions.add_(1)
        self.used.add_(1)
        if batch.seen is not None:
            batch.seen.scatter_(1, tokens[:, None], True)


def shapes(batch: Batch) -> list[tuple[Cohort, int, int, int]]:
    """What a step's shapes follow from."""
    return [(cohort, len(cohort), cohort.rows, cohort.room) for cohort in batch.cohorts]
