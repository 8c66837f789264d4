"""Attention of the decoder: prompts as a packed row whose keys and values are kept, then one token of every live answer at a time.

A prompt's keys are scored once for all answers of its group: their queries form one matrix. What an answer's own tokens and its prompt
contribute is put together through their softmax normalisers: with log-sum-exps a and b of two sets of scores and the means x and y of the
values under each, attention over both is x + sigmoid(b - a) (y - x). Soft-capping, sinks and sliding windows are honoured; a modifier that
is not known is refused. The model takes `decoding=` as an extra keyword that reaches every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from posttrain.models.attention import segments, varlen
from posttrain.models.attention.backends import HARMLESS, UnsupportedAttention, pick_backend
from posttrain.models.attention.layout import Layout, Scoring
from posttrain.rollout.cache import Cohort, Pair

NAME = "decoder"
Seen = tuple[Tensor, Tensor, Tensor | None]


class Pass(Protocol):
    """One run through the model. q [B, H, T, D], k [B, Hk, T, D], v [B, Hk, T, E] -> [B, T, H, E]."""

    def attend(self, layer: nn.Module, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor: ...


@torch.compiler.disable
def decoder_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    decoding: Pass | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls in every layer. Raises UnsupportedAttention for a keyword that would change the result."""
    if decoding is None:
        raise UnsupportedAttention("decoder attention needs decoding=Pass in the model's call")
    strange = sorted(name for name, given in rest.items() if given is not None and name not in HARMLESS)
    if strange or attention_mask is not None:
        raise UnsupportedAttention(f"{type(module).__name__} asks attention for {', '.join(strange) or 'a mask'}")
    if torch.is_autocast_enabled(query.device.type):
        kind = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(kind), key.to(kind), value.to(kind)  # once here, not at every use of the cache
    scoring = Scoring(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap, s_aux)
    return decoding.attend(module, query, key, value, scoring), None


def register() -> str:
    """Register the attention and its (absent) mask with transformers; returns the implementation's name."""
    no_mask: Callable[..., None] = lambda *_, **__: None  # noqa: E731
    AttentionInterface.register(NAME, decoder_attention)
    AttentionMaskInterface.register(NAME, no_mask)
    return NAME


class Prefill:
    """Prompts of some cohorts in one packed row, in order; each sees itself only. Their keys and values go to the cohorts."""

    def __init__(self, cohorts: Sequence[Cohort], positions: Tensor) -> None:
        self.cohorts = cohorts
        lengths = [int(length) for cohort in cohorts for length in cohort.lengths]
        self.starts = [sum(lengths[:i]) for i in range(len(lengths))]
        self.layout = Layout(tuple((start, start + length, -1) for start, length in zip(self.starts, lengths, strict=True)), positions)

    def attend(self, layer: nn.Module, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        """As in `Pass`; B = 1."""
        first = 0
        for cohort in self.cohorts:
            cohort.store(layer, k, v, self.starts[first : first + len(cohort.lengths)], scoring.window)
            first += len(cohort.lengths)
        half = q.dtype in (torch.float16, torch.bfloat16)
        dims = (q.shape[-1], v.shape[-1])
        kernel = pick_backend("auto", q.device.type, shared=False, plain=scoring.plain, head_dims=dims, half=half)
        # without a kernel of its own, not FlexAttention: what one run through the prompts saves does not pay for its compilation
        attend = varlen.attention if kernel == "varlen" else segments.attention
        return attend(q, k, v, self.layout, scoring).transpose(1, 2).contiguous()


class Reach(Protocol):
    """Which keys the newest token of a cohort's answers sees in a layer: keys, values, and what is added to scores (None: nothing)."""

    def own(self, cohort: Cohort, pair: Pair, window: int | None) -> Seen:
        """Of each answer's own tokens: keys [N, Hk, K, D]."""

    def prompt(self, cohort: Cohort, pair: Pair, window: int | None) -> Seen | None:
        """Of each prompt's: keys [P, Hk, K, D]; None where a sliding window has left all of them behind."""


class Sliced:
    """Reads what is seen and nothing else."""

    def own(self, cohort: Cohort, pair: Pair, window: int | None) -> Seen:
        """See Reach."""
        end = cohort.used + 1
        start = 0 if window is None else max(0, end - window)
        keys, values = (x[: len(cohort), :, start:end] for x in pair.suffix)
        return keys, values, None

    def prompt(self, cohort: Cohort, pair: Pair, window: int | None) -> Seen | None:
        """See Reach."""
        keys, values = pair.prefix
        length = keys.shape[2]
        start = 0 if window is None else max(0, length - (window - 1 - cohort.used))
        if start >= length:
            return None
        return keys[:, :, start:], values[:, :, start:], cohort.padding_of(length - start)


class Decode:
    """The newest token of every live answer; rows of one cohort after the other's."""

    def __init__(self, cohorts: Sequence[Cohort]) -> None:
        self.cohorts = cohorts
        self.rows = [len(cohort) for cohort in cohorts]
        self.reach: Reach = Sliced()

    def attend(self, layer: nn.Module, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        """As in `Pass`; T = 1."""
        parts = zip(self.cohorts, q.split(self.rows), k.split(self.rows), v.split(self.rows), strict=True)
        outs = []
        for cohort, near, keys, values in parts:
            outs.append(attend_cohort(cohort, self.append(cohort, layer, keys, values), near, scoring, self.reach))
        return (outs[0] if len(outs) == 1 else torch.cat(outs))[:, None]

    def append(self, cohort: Cohort, layer: nn.Module, keys: Tensor, values: Tensor) -> Pair:
        """Put the newest token's keys and values where they belong."""
        return cohort.append(layer, keys, values)


def attend_cohort(cohort: Cohort, pair: Pair, q: Tensor, scoring: Scoring, reach: Reach) -> Tensor:
    """q [N, H, 1, D] of a cohort's rows over their prompts' and their own tokens -> [N, H, E]."""
    rows, heads, _, width = q.shape
    key_heads = pair.prefix[0].shape[1]
    grouped = (q * scoring.scale).reshape(rows, key_heads, heads // key_heads, width)
    out, mass = _softmax_mean(grouped, reach.own(cohort, pair, scoring.window), scoring.softcap)
    prompt = reach.prompt(cohort, pair, scoring.window)
    if prompt is not None:
        other, other_mass = _over_prompts(cohort, grouped, prompt, scoring.softcap)
        out = torch.lerp(out, other, torch.sigmoid(other_mass - mass).to(out.dtype))
        mass = mass if scoring.sinks is None else torch.logaddexp(mass, other_mass)
    if scoring.sinks is not None:
        out = out * torch.sigmoid(mass - scoring.sinks.view(1, key_heads, -1, 1).to(mass.dtype)).to(out.dtype)
    return out.reshape(rows, heads, -1)


def _over_prompts(cohort: Cohort, q: Tensor, seen: Seen, softcap: float | None) -> tuple[Tensor, Tensor]:
    """q [N, Hk, R, D] over each row's prompt -> means [N, Hk, R, E], log-sum-exps [N, Hk, R, 1]; all rows of a prompt at once."""
    _, key_heads, repeats, width = q.shape
    prompts = len(seen[0])
    placed = q if cohort.slots is None else q.index_select(0, cohort.slots)
    by_prompt = placed.view(prompts, cohort.width, key_heads, repeats, width).transpose(1, 2).reshape(prompts, key_heads, -1, width)
    found = _softmax_mean(by_prompt, seen, softcap)
    out, mass = (x.view(prompts, key_heads, cohort.width, repeats, -1).transpose(1, 2).flatten(0, 1) for x in found)
    return (out, mass) if cohort.home is None else (out.index_select(0, cohort.home), mass.index_select(0, cohort.home))


def _softmax_mean(q: Tensor, seen: Seen, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Means [..., M, E] of values [..., K, E] under softmax(q keys^T), and the log-sum-exps [..., M, 1] of the scores.

    q: [..., M, D], scaled. keys: [..., K, D]. padding: broadcasts to [..., M, K], -inf at keys that do not exist, never all of a
    row, else 0.
    """
    keys, values, padding = seen
    scores = torch.matmul(q, keys.transpose(-1, -2))
    if scores.dtype in (torch.bfloat16, torch.float16):
        scores = scores.float()
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if padding is not None:
        scores = scores.add_(padding)  # in a fraction of a fill's time
    probs = scores.softmax(-1)
    # the largest score is that of the largest probability, which is at least 1 / K and so has a logarithm
    mass = scores.amax(-1, keepdim=True) - probs.amax(-1, keepdim=True).log()
    return torch.matmul(probs.to(values.dtype), values), mass
