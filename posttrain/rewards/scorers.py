"""Trained reward models on conversations: `load_reward_model(folder)` and `load_process_reward_model(folder)`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from posttrain.data.chat import Chat
from posttrain.data.encoders import EncodeSettings, get
from posttrain.data.encoders.conversation import with_system
from posttrain.data.formats.steps import joined
from posttrain.data.spans import tokenise
from posttrain.data.templates import render_example
from posttrain.errors import DataError, Problem
from posttrain.models.reward import Judge, StepJudge, load_judge, load_step_judge
from posttrain.models.tokenizers import load_tokenizer
from posttrain.types import Example, Judged, Rendering, Step

Conversation = Sequence[Mapping[str, Any]]
UNBOUNDED = 2**31 - 1


class RewardScorer:
    """A reward model that scores conversations."""

    def __init__(self, judge: Judge, tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> None:
        self.judge_tokens = judge
        self.tokenizer = tokenizer
        self.rendering = rendering
        self.chat = Chat(tokenizer, rendering.template_kwargs)

    def __call__(self, conversations: Sequence[Conversation], *, max_tokens: int = 8192) -> Tensor:
        """Rewards [N], float32 on the CPU, of conversations that end in an assistant turn.

        max_tokens: of a batch, padding included. Raises RowError for a conversation that the chat template refuses.
        """
        return self.judge(conversations, max_tokens=max_tokens).reward

    def judge(self, conversations: Sequence[Conversation], *, max_tokens: int = 8192) -> Judged:
        """The same with the head's attributes or quantiles."""
        return self.judge_tokens([self.encode(conversation) for conversation in conversations], max_tokens=max_tokens)

    def encode(self, conversation: Conversation) -> np.ndarray:
        """Token ids of a conversation as in training: up to the last token of its last turn."""
        example = with_system(Example(messages=tuple(conversation)), self.rendering.system)
        found = render_example(self.chat, example, train_on="last")
        return tokenise(self.tokenizer, found)[0][0]


class StepScorer:
    """A process reward model that judges the steps of worked answers."""

    def __init__(self, judge: StepJudge, tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> None:
        self.judge_tokens = judge
        self.tokenizer = tokenizer
        self.separator = rendering.separator
        self.settings = EncodeSettings(max_length=UNBOUNDED, system=rendering.system, template_kwargs=rendering.template_kwargs)

    def __call__(self, prompt: Conversation, steps: Sequence[str], *, separator: str | None = None) -> Tensor:
        """Probability that each of `steps` is right, float32 [S] on the CPU.

        separator: between the steps; None for that of the training. Raises DataError for steps that cannot be told apart in the tokens.
        """
        found = get("steps")([_worked(prompt, steps, self.separator if separator is None else separator)], self.tokenizer, self.settings)[0]
        if not isinstance(found, list):
            raise DataError(Problem("steps", str(found)))
        return self.judge_tokens(found[0].tokens.ids, found[0].tokens.marks)


def _worked(prompt: Conversation, steps: Sequence[str], separator: str) -> Example:
    content, ends = joined(steps, separator)
    answer = {"role": "assistant", "content": content}
    return Example(messages=(*prompt, answer), steps=tuple(Step(end, 0.0) for end in ends))


def load_reward_model(
    folder: str | Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    system: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> RewardScorer:
    """The reward model of an artifact, with any head. dtype: of its body; None for the one its weights are stored in.

    system, template_kwargs: as `data.system` and `data.template_kwargs`; None for those of its training, "" and {} for none. Raises
    ConfigError where the folder is no reward model's artifact, or its files are damaged.
    """
    path = Path(os.path.expanduser(folder))
    judge = load_judge(path, device=torch.device(device), dtype=dtype)
    return RewardScorer(judge, _tokenizer(path), _changed(judge.rendering, system, template_kwargs))


def load_process_reward_model(
    folder: str | Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    system: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> StepScorer:
    """The process reward model of an artifact, as `load_reward_model`."""
    path = Path(os.path.expanduser(folder))
    judge = load_step_judge(path, device=torch.device(device), dtype=dtype)
    return StepScorer(judge, _tokenizer(path), _changed(judge.rendering, system, template_kwargs))


def _changed(known: Rendering, system: str | None, template_kwargs: Mapping[str, Any] | None) -> Rendering:
    return replace(
        known,
        system=known.system if system is None else system,
        template_kwargs=known.template_kwargs if template_kwargs is None else template_kwargs,
    )


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer({"path": str(folder), "weights": "pretrained"})
