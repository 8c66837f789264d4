"""A judge in this process: a transformers model folder, greedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from posttrain.data.chat import Chat
from posttrain.data.spans import encode_ids
from posttrain.models.decoding import decoding_mode, left_padded, stop_tokens, until
from posttrain.models.flops import body_flops
from posttrain.models.loading import build_model
from posttrain.models.tokenizers import load_tokenizer
from posttrain.rewards.backends.base import Backend, Question, Silence


class Local(Backend):
    """path: folder or hub id of a model with a chat template. device: auto is where the policy is. batch_tokens: of a batch, padding and
    new tokens included. A question longer than longest_prompt tokens gets no reply.
    """

    def __init__(
        self,
        *,
        path: str,
        device: str = "auto",
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        max_new_tokens: int = 512,
        longest_prompt: int = 8192,
        batch_tokens: int = 32768,
        template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.path, self.device, self.dtype, self.template_kwargs = path, device, dtype, template_kwargs or {}
        self.max_new_tokens, self.longest_prompt, self.batch_tokens = max_new_tokens, longest_prompt, batch_tokens
        self._loaded: tuple[Any, Any] | None = None
        self._operations = 0.0

    @property
    def operations(self) -> float:
        """See `Backend`."""
        return self._operations

    def place(self, device: str) -> None:
        """See `Backend`."""
        if self.device == "auto":
            self.device = device

    def start(self) -> None:
        """Load the model, once."""
        if self._loaded is None:
            about = {"path": self.path, "weights": "pretrained"}
            model: Any = build_model(about, dtype=getattr(torch, self.dtype))
            self._loaded = model.to("cpu" if self.device == "auto" else self.device).eval(), load_tokenizer(about)

    def ask(self, questions: Sequence[Question]) -> list[str | Silence]:
        """See `Backend`."""
        self.start()
        assert self._loaded is not None
        chat = Chat(self._loaded[1], self.template_kwargs)
        # what is judged may be written to sway the judge: special tokens in it are text and end no turn
        texts = [chat.render(chat.guard.messages(question.messages), (), prompt=True) for question in questions]
        prompts = [ids.tolist() for ids in encode_ids(self._loaded[1], texts)]
        replies: list[str | Silence] = [Silence(f"too long: {len(prompt)} tokens") for prompt in prompts]
        order = sorted(
            (place for place in range(len(prompts)) if len(prompts[place]) <= self.longest_prompt), key=lambda i: len(prompts[i])
        )
        for batch in self._batches(order, prompts):
            for place, reply in zip(batch, self._generate([prompts[place] for place in batch]), strict=True):
                replies[place] = reply
        return replies

    def _batches(self, order: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        batches: list[list[int]] = []
        for place in order:
            full = not batches or (len(batches[-1]) + 1) * (len(prompts[place]) + self.max_new_tokens) > self.batch_tokens
            batches.append([place]) if full else batches[-1].append(place)
        return batches

    @torch.no_grad()
    def _generate(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        assert self._loaded is not None
        model, tokenizer = self._loaded
        ids, mask = (x.to(model.device) for x in left_padded(prompts, 0))
        ends = stop_tokens(model, tokenizer)
        options = {"max_new_tokens": self.max_new_tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": ends or None}
        with decoding_mode(model):
            made = model.generate(input_ids=ids, attention_mask=mask, **options)[:, ids.shape[1] :]
        self._operations += _operations(model, ids.shape[0], ids.shape[1], made.shape[1])
        return [tokenizer.decode(until(row.tolist(), ends), skip_special_tokens=True) for row in made]


def _operations(model: Any, rows: int, length: int, made: int) -> float:
    """Of `rows` prompts of `length` tokens, padding included, each with `made` tokens predicted; the last is never read."""
    read = rows * (length + made - 1)
    pairs = rows * (length**2 + (made - 1) * length + made * (made - 1) / 2)
    return body_flops(model, tokens=read, pairs=pairs) + 2.0 * rows * made * model.get_output_embeddings().weight.numel()
