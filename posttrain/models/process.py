"""Process reward models of an artifact: how likely each step of a worked answer is right."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data.encoders import EncodeSettings, get
from posttrain.errors import DataError, Problem
from posttrain.models.classifiers import parts_of
from posttrain.models.reward import Conversation, describe, logits_at
from posttrain.models.tokenizers import load_tokenizer
from posttrain.types import Example, Step

UNBOUNDED = 2**31 - 1


class StepScorer:
    """A process reward model that judges steps. load_process_reward_model makes one."""

    def __init__(
        self,
        body: PreTrainedModel,
        head: nn.Linear,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.body = body.eval()
        self.head = head
        self.tokenizer = tokenizer
        self.settings = EncodeSettings(max_length=UNBOUNDED, template_kwargs=template_kwargs or {})

    @torch.no_grad()
    def __call__(self, prompt: Conversation, steps: Sequence[str], *, separator: str = "\n") -> Tensor:
        """Probability that each of `steps` is right, float32 [S] on the CPU.

        separator: between the steps, as in training. Raises DataError for steps that cannot be told apart in the tokens.
        """
        example = _example(prompt, steps, separator)
        found = get("steps")([example], self.tokenizer, self.settings)[0]
        if not isinstance(found, list):
            raise DataError(Problem("steps", str(found)))
        tokens = found[0].tokens
        ids = torch.from_numpy(tokens.ids).long().to(self.body.device)
        hidden = self.body(input_ids=ids[None], use_cache=False).last_hidden_state[0]
        marks = torch.from_numpy(tokens.marks).long().to(ids.device)
        return logits_at(self.head, hidden, marks).softmax(-1)[:, 1].cpu()


def _example(prompt: Conversation, steps: Sequence[str], separator: str) -> Example:
    content, ends = "", []
    for step in steps:
        content += (separator if content else "") + step
        ends.append(len(content.rstrip()))
    answer = {"role": "assistant", "content": content}
    return Example(messages=(*prompt, answer), steps=tuple(Step(end, 0.0) for end in ends))


def load_process_reward_model(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> StepScorer:
    """The process reward model of an artifact. dtype: None for the one its weights are stored in.

    Raises ConfigError where the folder is no process reward model's artifact, or its files are damaged.
    """
    path = Path(os.path.expanduser(folder))
    describe(path, task="steps")
    loaded: Any = AutoModelForTokenClassification.from_pretrained(str(path), dtype=dtype or "auto")
    body, head = parts_of(loaded.to(torch.device(device)))
    return StepScorer(body, head.float(), load_tokenizer({"path": str(path), "weights": "pretrained"}), template_kwargs=template_kwargs)
