"""Answers through transformers' own `generate`: every family; prompts are padded, and computed once a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from posttrain.models.decoding import batches, decoding_mode, left_padded
from posttrain.models.packed import packed_linears
from posttrain.rollout.answers import Answers
from posttrain.rollout.base import Generator, Request, Sampling
from posttrain.rollout.sampling import draw_operations, sample
from posttrain.types import Completion


class TransformersGenerator(Generator):
    """Samples with transformers' `generate`, which runs the model; tokens are drawn as the native decoder draws them.

    batch_tokens: most tokens, prompts and answers with their padding, that a batch holds; one sample is always taken. The other options:
    see Sampling. A sample depends on its request's seed and its own number only, as far as the model's logits do: padding and batch
    change them by rounding, in 16 bits by more.
    """

    def __init__(self, *, batch_tokens: int = 32768, **common: Any) -> None:
        super().__init__(**common)
        self.batch_tokens = batch_tokens

    def drawing(self, tokens: int) -> float:
        """See Generator."""
        return tokens * draw_operations(int(self.policy.causal_lm.config.get_text_config().vocab_size))

    def generate(self, requests: Sequence[Request], *, sampling: Sampling | None = None) -> list[list[Completion]]:
        """See Generator. Raises DataError for an empty prompt, FloatingPointError for logits that are not finite."""
        asked = sampling or self.sampling
        answers = Answers(requests, asked.max_new_tokens, self.stops(asked), steered=asked.steers)
        prompts = [request.prompt for request in requests for _ in range(request.samples)]
        with decoding_mode(self.policy.model), packed_linears(self.policy.model):
            for rows in batches([len(prompt) for prompt in prompts], asked.max_new_tokens, self.batch_tokens):
                self._answer(answers, np.array(rows), [prompts[row] for row in rows], asked)
        return answers.completions()

    @torch.no_grad()
    def _answer(self, answers: Answers, rows: np.ndarray, prompts: Sequence[np.ndarray], sampling: Sampling) -> None:
        model: Any = self.policy.model
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        ids, mask = (x.to(next(model.parameters()).device) for x in left_padded(prompts, pad))
        config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens, do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=pad
        )
        draw = _Draw(answers, rows, sampling, mask)
        model.generate(
            input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList([draw]),
            stopping_criteria=StoppingCriteriaList([_Ended(draw)]),
            synced_gpus=False,  # weights are whole while answers are sampled, and other ranks answer other numbers of prompts
        )  # fmt: skip


class _Draw(LogitsProcessor):
    """Draws the next token of every row and leaves only that one to choose. rows: [B] in `answers`. mask: [B, L], 0 where padded."""

    def __init__(self, answers: Answers, rows: np.ndarray, sampling: Sampling, mask: Tensor) -> None:
        self.answers, self.rows, self.sampling, self.mask = answers, rows, sampling, mask
        self.alive = np.ones(len(rows), bool)
        self.seen: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids: [B, L]. scores: the model's logits [B, V]; returns -inf but for the drawn tokens."""
        if self.sampling.penalises:
            self._see(input_ids, scores)
        uniform = torch.from_numpy(self.answers.uniforms(self.rows)).to(scores.device)
        tokens, *logps = sample(scores.float(), uniform, self.sampling, self.seen)
        drawn = torch.stack([tokens.double(), *(part.double() for part in logps)]).cpu().numpy()[:, self.alive]
        known = (part.astype(np.float32) for part in drawn[1:])
        self.alive[self.alive] = self.answers.add(self.rows[self.alive], drawn[0].astype(np.int64), *known)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)

    def _see(self, input_ids: Tensor, scores: Tensor) -> None:
        if self.seen is None:
            self.seen = torch.zeros_like(scores, dtype=torch.bool)
            row, column = self.mask.nonzero(as_tuple=True)
            self.seen[row, input_ids[row, column]] = True
        else:
            self.seen.scatter_(1, input_ids[:, -1:], True)


class _Ended(StoppingCriteria):
    """Which rows have ended."""

    def __init__(self, draw: _Draw) -> None:
        self.draw = draw

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """Bool [B]."""
        return torch.from_numpy(~self.draw.alive).to(input_ids.device)
