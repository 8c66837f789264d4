"""One answer at a time, streamed as text while it is generated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from posttrain.models.decoding import decoding_mode, stop_tokens, until

UNFINISHED = "\ufffd"  # what an incomplete UTF-8 sequence decodes to


class Answerer:
    """Generates answers of one model with fixed settings.

    max_new_tokens: most tokens of an answer. temperature: 0 = greedy. top_p: nucleus (arXiv:1904.09751). seed: of the first answer; later
    ones continue its random stream.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int | None = None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.stops = stop_tokens(model, tokenizer)
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {"do_sample": False}
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.config = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=self.stops or None, pad_token_id=pad, **sampling)
        if seed is not None:
            torch.manual_seed(seed)

    def encode_messages(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation up to where the next answer starts."""
        text = self.tokenizer.apply_chat_template([dict(m) for m in messages], add_generation_prompt=True, tokenize=False)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text, as the tokenizer begins a document."""
        return list(self.tokenizer(text)["input_ids"])

    def fits(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt and a full answer stay within the positions the model was made for."""
        limit = self.model.config.get_text_config().max_position_embeddings
        return len(prompt) + self.config.max_new_tokens <= limit

    def answer(self, prompt: Sequence[int], show: Callable[[str], None]) -> str:
        """Generate, passing each piece of text to `show`; returns the whole answer. KeyboardInterrupt ends the answer, not the program."""
        streamer = PieceStreamer(self.tokenizer, self.stops, show)
        ids = torch.tensor([list(prompt)], device=self.model.device)
        try:
            with decoding_mode(self.model), torch.no_grad():
                self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=self.config, streamer=streamer)  # type: ignore[operator]
        except KeyboardInterrupt:
            streamer.end()
        return streamer.text


class PieceStreamer(BaseStreamer):
    """Shows text as soon as it is certain: never half a character, never a special token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int], show: Callable[[str], None]):
        self.tokenizer = tokenizer
        self.stops = stops
        self.show = show
        self.text = ""
        self._tokens: list[int] = []
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        """Take the prompt (first call), then one new token a call."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._tokens += value.flatten().tolist()
        decoded = self._decoded()
        if not decoded.endswith(UNFINISHED):
            self._emit(decoded)

    def end(self) -> None:
        """Show what was held back."""
        self._emit(self._decoded())

    def _decoded(self) -> str:
        return str(self.tokenizer.decode(until(self._tokens, self.stops), skip_special_tokens=True))

    def _emit(self, decoded: str) -> None:
        # Decoders that change earlier text when more follows are rare; what is on the screen stays.
        self.show(decoded[len(self.text) :])
        self.text += decoded[len(self.text) :]
