"""Memory of sampling: keys and values of what is being answered, the logits of one token of every answer, weights laid out for it."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.runs.planning.shapes import ModelShape

PREFILL_TOKENS = 8192  # as in posttrain.rollout.native
LOGITS = 3  # times the logits of a step: themselves, their masses, one copy for temperature or truncation
SCORES = 3


@dataclass(frozen=True)
class Sampling:
    """A device's share of a rollout. prompts: how many; prompt: tokens of the longest; answer: most tokens of an answer. cache: most tokens
    of keys and values at once; None where another program samples."""

    prompts: int
    group: int
    prompt: int
    answer: int
    cache: int | None

    @property
    def tokens(self) -> int:
        """Keys and values at once, answers at their full length."""
        if self.cache is None:
            return 0
        one = self.prompt + self.group * self.answer
        return min(self.prompts * one, max(one, self.cache))

    @property
    def rows(self) -> int:
        """Answers at once."""
        one = self.prompt + self.group * self.answer
        return round(self.tokens / one * self.group)


@dataclass(frozen=True)
class SamplingBytes:
    """cache: keys and values. passing: logits, scores and a prefill's states. packed: the second copy of linear layers on a CPU. cast:
    the one in 16 bits that autocast makes of float32 weights."""

    cache: float
    passing: float
    packed: float
    cast: float = 0.0


def sampling_bytes(model: ModelShape, sampling: Sampling, *, half: bool, packs: bool, casts: bool = False) -> SamplingBytes:
    """What sampling holds at its worst moment. packs: whether it computes with packed weights (`posttrain.models.packed`). casts: whether
    weights are kept in float32 and computed with in 16 bits."""
    if sampling.cache is None:
        return SamplingBytes(0, 0, 0)
    element = 2 if half else 4
    prompts = sampling.rows / sampling.group
    cached = 0.0
    for shape in model.attentions:
        seen = sampling.prompt if shape.window is None else min(sampling.prompt, shape.window - 1)
        tokens = prompts * seen + sampling.rows * sampling.answer
        cached += element * shape.key_heads * (shape.key_width + shape.value_width) * tokens
    heads = max((shape.heads for shape in model.attentions), default=1)
    logits = LOGITS * 4.0 * sampling.rows * model.vocabulary
    scores = SCORES * 4.0 * sampling.rows * heads * (sampling.prompt + sampling.answer)
    prefill = model.layer * min(PREFILL_TOKENS, round(prompts * sampling.prompt))
    return SamplingBytes(
        cached,
        max(logits, prefill) + scores,
        element * model.weights.linears if packs else 0,
        2 * model.weights.linears if casts and not packs else 0,
    )
