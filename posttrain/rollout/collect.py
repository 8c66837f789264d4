"""From prompts to judged answers: sample, score, and tell every rank all of it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from posttrain.errors import ConfigError, Problem
from posttrain.rewards.combine import combine, plain
from posttrain.rewards.compose import RewardSet
from posttrain.rollout.base import Generator, Request, Sampling
from posttrain.types import Completion, Group, GroupRewards, Rollout, Sample

log = logging.getLogger(__name__)

Gather = Callable[[Any], list[Any]]


class Prompts(Protocol):
    """Tokenised prompts by number, with their lengths [N] and the texts that were kept beside them; which of them have one."""

    @property
    def lengths(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def value(self, name: str, index: int) -> Any: ...

    def with_value(self, name: str) -> np.ndarray: ...


@dataclass(frozen=True)
class Answered:
    """Prompts with their answers and the raw values of the reward components [K, P, G]."""

    groups: tuple[Group, ...]
    raw: np.ndarray

    def picked(self, places: np.ndarray) -> Answered:
        """Some of the groups."""
        return Answered(tuple(self.groups[place] for place in places), self.raw[:, places])


@dataclass
class Collector:
    """Answers prompts with the policy of the moment and judges the answers.

    rank, world: this process among those that share the work. gather: everybody's value, by rank. gathered: around what
    runs the policy of this process, which is whole inside. seed: of the run; an answer depends on
    it, on the prompt's place in the run and on the answer's number, and not on who computes it beside what.
    """

    prompts: Prompts
    generator: Generator
    rewards: RewardSet
    tokenizer: PreTrainedTokenizerBase
    seed: int
    rank: int = 0
    world: int = 1
    gather: Gather = lambda value: [value]
    gathered: Callable[[], AbstractContextManager[None]] = nullcontext
    seconds: dict[str, float] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    counted: float = 0.0

    def answer(self, prompts: Sequence[int], places: Sequence[int]) -> Answered:
        """Answers to prompts, given by their numbers, the same on every rank. places: of each in the run's endless order."""
        numbers, mine = prompts[self.rank :: self.world], places[self.rank :: self.world]
        asked = [self.prompts[number].ids for number in numbers]
        size = self.generator.group_size
        requests = [Request(ids, size, prompt_seed(self.seed, place)) for ids, place in zip(asked, mine, strict=True)]
        with self.timed("generate"):
            found = self.generated(requests)
        groups = [Group(number, ids, tuple(some), place) for number, ids, some, place in zip(numbers, asked, found, mine, strict=True)]
        with self.timed("reward"):
            raw = self._measure(groups)
        with self.timed("exchange"):
            return self._everybody(groups, raw, len(prompts))

    def generated(self, requests: Sequence[Request], sampling: Sampling | None = None) -> list[list[Completion]]:
        """This rank's answers, by the policy as it is now; every rank calls, also one without requests."""
        self.generator.refresh()
        with self.gathered() if self.generator.runs_policy else nullcontext():
            return self.generator.generate(requests, sampling=sampling) if requests else []

    def _measure(self, groups: Sequence[Group]) -> np.ndarray:
        """Raw values [K, own groups, G]."""
        measured = self.rewards.measure([sample for place, group in enumerate(groups) for sample in self.samples(group, place)])
        for name, failures in measured.failures.items():
            self.failures[name] = self.failures.get(name, 0) + failures.count
        return measured.raw.numpy().reshape(len(self.rewards.components), len(groups), self.generator.group_size)

    def samples(self, group: Group, number: int) -> Iterator[Sample]:
        """The answers of a group as rewards see them, each with facts of its own, which a reward may change."""
        known = self.prompts.value("facts", group.example)
        answer = self.prompts.value("answer", group.example)
        for completion in group.completions:
            text, facts = self.text(completion), json.loads(known)
            yield Sample(tuple(facts["prompt"]), text, len(completion.tokens), completion.finish, answer, facts["meta"], number)

    def text(self, completion: Completion) -> str:
        """What was said, without the tokens that end a turn and without the stop string that ended it."""
        said = str(self.tokenizer.decode(completion.tokens, skip_special_tokens=True))
        ends = [place for stop in self.generator.sampling.stop if (place := said.find(stop)) >= 0]
        return said[: min(ends)] if ends and completion.finish == "stop" else said

    def check_answers(self) -> None:
        """Raises ConfigError where a component compares with expected answers and no prompt has one; tells where some have none."""
        without = len(self.prompts) - len(self.prompts.with_value("answer"))
        for name, component in self.rewards.components.items():
            if not component.needs_answer or not without:
                continue
            if without == len(self.prompts):
                message = "compares with the expected answer, and no row of the data has one"
                raise ConfigError(Problem(f"reward.{name}", message, "give rows a field `answer`, or choose another reward"))
            log.warning("reward %s cannot score answers to %d of %d prompts: no expected answer", name, without, len(self.prompts))

    def _everybody(self, groups: Sequence[Group], raw: np.ndarray, count: int) -> Answered:
        """All ranks' groups in the order of the prompts."""
        parts = self.gather((list(groups), raw))
        whole: list[Group | None] = [None] * count
        values = np.zeros((raw.shape[0], count, raw.shape[2]))
        for rank, (theirs, measured) in enumerate(parts):
            whole[rank :: len(parts)] = theirs
            values[:, rank :: len(parts)] = measured
        return Answered(tuple(group for group in whole if group is not None), values)

    def judged(self, answered: Answered, number: int) -> Rollout:
        """The rewards of the answers as a whole; all are kept at first, but those that could not be scored."""
        components, prompts, size = answered.raw.shape
        groups = np.repeat(np.arange(prompts), size)
        flat = torch.from_numpy(answered.raw.reshape(components, -1))
        known = list(self.rewards.components.values())
        total, parts = combine(flat, torch.from_numpy(groups), known)
        weights = torch.tensor([component.weight for component in known], dtype=torch.float64)
        rewards = GroupRewards(total.view(prompts, size), parts.view(components, prompts, size), weights)
        return Rollout(number, answered.groups, rewards, ~np.isnan(rewards.total.numpy()))

    def plain(self, answered: Answered) -> torch.Tensor:
        """The weighted sum of the components as they were measured, [P, G]."""
        return plain(torch.from_numpy(answered.raw), list(self.rewards.components.values()))

    def timed(self, phase: str) -> _Clock:
        """Counts the seconds inside the block to a phase."""
        return _Clock(self.seconds, phase)

    def pop_seconds(self) -> dict[str, float]:
        """Seconds of each phase since the last call."""
        seconds, self.seconds = self.seconds, {}
        return seconds

    def pop_operations(self) -> float:
        """Floating-point operations of the rewards' own models since the last call, over all ranks."""
        now = self.rewards.operations
        spent, self.counted = now - self.counted, now
        return float(sum(self.gather(spent)))

    def pop_failures(self) -> Mapping[str, int]:
        """Answers that each component could not score since the last call, over all ranks."""
        counts, self.failures = self.failures, {}
        everybody = self.gather(counts)
        return {name: sum(part.get(name, 0) for part in everybody) for name in self.rewards.components}


@dataclass
class _Clock:
    """Adds the seconds inside the block to a phase."""

    seconds: dict[str, float]
    phase: str
    began: float = 0.0

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + time.perf_counter() - self.began


def prompt_seed(seed: int, place: int) -> int:
    """A 63-bit seed of its own for every place in a run's order of prompts."""
    mixed = (seed * 0x9E3779B97F4A7C15 + place * 0xBF58476D1CE4E5B9 + 0x2545F4914F6CDD1D) & (2**64 - 1)
    mixed ^= mixed >> 31
    return (mixed * 0xD6E8FEB86659FD93 & (2**64 - 1)) >> 1
