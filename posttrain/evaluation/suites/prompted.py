"""A model's answers to prompts, as rewards and judges see them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from posttrain.data.encoders import EncodeSettings, get
from posttrain.data.prepare import Prepared, tokenizer_digest
from posttrain.data.tokenized import TokenizedSet
from posttrain.errors import ConfigError, DataError, Problem
from posttrain.evaluation.generation import generator_of
from posttrain.evaluation.scores import names_of
from posttrain.evaluation.suites.local import ANY_LENGTH, prepared_of
from posttrain.rewards.compose import RewardSet
from posttrain.rollout.base import Request, Sampling
from posttrain.rollout.collect import Collector
from posttrain.types import Example, Group, Sample


@dataclass(frozen=True)
class Asking:
    """Prompts, and how they are answered. numbers: of the prompts among `prepared.val`. temperature 0: the likeliest answer."""

    prepared: Prepared
    numbers: Sequence[int]
    sampling: Sampling
    seed: int

    @property
    def prompts(self) -> TokenizedSet:
        """The set that the numbers are of."""
        assert self.prepared.val is not None
        return self.prepared.val

    @property
    def names(self) -> list[str]:
        """Of the prompts, by what is asked, so that models are compared on the same ones."""
        return names_of(f"{self.prompts.value('prompt', i)}\0{self.prompts.value('answer', i)}" for i in self.numbers)

    def answers(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[np.ndarray] | None = None) -> list[Sample]:
        """One answer of a model to each prompt. prompts: as this model's tokens; None: as they were prepared."""
        asked = [self.prompts[i].ids for i in self.numbers] if prompts is None else prompts
        generator = generator_of(model, tokenizer)
        found = generator.generate([Request(ids, 1, seed_of(ids, self.seed)) for ids in asked], sampling=self.sampling)
        collector = Collector(self.prompts, generator, RewardSet({}), tokenizer, self.seed)
        groups = [Group(number, ids, tuple(some)) for number, ids, some in zip(self.numbers, asked, found, strict=True)]
        return [sample for place, group in enumerate(groups) for sample in collector.samples(group, place)]

    def prompts_for(
        self, samples: Sequence[Sample], own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase
    ) -> list[np.ndarray] | None:
        """The prompts of `samples` as another model's tokens; None where it reads the same ones.

        Raises DataError for a prompt that its chat template refuses.
        """
        if tokenizer_digest(own) == tokenizer_digest(other):
            return None
        outcomes = get("prompt")([Example(messages=sample.prompt) for sample in samples], other, EncodeSettings(ANY_LENGTH))
        if refused := [outcome for outcome in outcomes if not isinstance(outcome, list)]:
            raise DataError(Problem("against", f"its chat template refuses {len(refused)} prompts: {refused[0]}"))
        return [outcome[0].tokens.ids for outcome in outcomes if isinstance(outcome, list)]


def asking(
    tokenizer: PreTrainedTokenizerBase,
    *,
    data: str | Prepared,
    limit: int | None,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    **source: Any,
) -> Asking:
    """What is asked of a model. data, source: see `prepared_of`. Raises ConfigError for numbers that nothing can be sampled with."""
    try:
        sampling = Sampling(max_new_tokens, temperature=temperature)
    except ValueError as error:
        raise ConfigError(Problem("eval", str(error))) from error
    prepared = prepared_of(data, tokenizer, kind="prompt", max_length=ANY_LENGTH, limit=limit, **source)
    count = 0 if prepared.val is None else len(prepared.val)
    return Asking(prepared, range(count)[:limit], sampling, seed)


def seed_of(prompt: np.ndarray, seed: int) -> int:
    """Of a prompt's answers: they do not depend on the prompts beside it."""
    content = np.ascontiguousarray(prompt, np.int64).tobytes() + seed.to_bytes(8, "little", signed=True)
    return int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "little")


def stderr(values: np.ndarray) -> float:
    """Standard error of the mean of `values` [N], one a prompt, which are drawn at random; NaN with a single one."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")
