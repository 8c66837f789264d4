"""From logits to tokens: penalty, temperature, truncation, and one uniform number a token turned into a draw.

Order and meaning of the steps are those of transformers' processors: repetition penalty, temperature, top-k, top-p, min-p. A token is
drawn by inverting the cumulative distribution, so a sample needs nothing but its own number, and rounding in the logits moves a draw only
where the number falls within that rounding of a boundary.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from posttrain.rollout.base import Sampling

BLOCK = 256  # tokens summed together; the cumulative sum runs over blocks, then within one


def sample(logits: Tensor, uniform: Tensor, sampling: Sampling, seen: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens int64 [B], their log-probabilities float32 [B], and those under the distribution that was drawn from, float32 [B].

    logits: [B, V], at least float32; may be overwritten. uniform: float64 [B], in (0, 1). seen: bool [B, V], tokens that the repetition
    penalty holds for; None without one. The first log-probabilities are those of softmax(logits / temperature), before penalty and
    truncation; the last are the same where there is neither, and where the likeliest token is taken.
    """
    greedy = sampling.temperature == 0
    if not greedy and sampling.temperature != 1.0:
        logits = logits / sampling.temperature
    steered = logits if seen is None else penalised(logits, seen, sampling.repetition_penalty)
    if greedy:
        tokens = steered.argmax(-1)
        logps = _logps(logits, tokens)
        return tokens, logps, logps
    if not sampling.steers:
        tokens, logps = _draw_whole(logits, uniform)
        return tokens, logps, logps
    values, index = candidates(steered, sampling)
    picked = invert(*_masses(values), uniform)
    tokens = picked if index is None else index.gather(1, picked[:, None])[:, 0]
    return tokens, _logps(logits, tokens), _logps(values, picked)


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits [B, V] with those of `seen` tokens divided by the penalty where positive, multiplied where negative."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Logits [B, K] of the tokens that may be drawn, -inf for those that may not, and the tokens [B, K]; None where K is V, in order.

    Of several tokens with the logit of the last of the top k, transformers keeps all and this one only as many as make k.
    """
    index = None
    if sampling.top_k is not None and sampling.top_k < logits.shape[1]:
        logits, index = logits.topk(sampling.top_k)
    elif sampling.top_p < 1.0:
        logits, index = logits.sort(descending=True)
    if sampling.top_p < 1.0:  # sorted, the likeliest first
        probs = logits.softmax(-1)
        before = probs.cumsum(-1, dtype=torch.float64) - probs
        logits = logits.masked_fill(before >= sampling.top_p, -torch.inf)
    if sampling.min_p > 0.0:
        probs = logits.softmax(-1)
        logits = logits.masked_fill(probs < sampling.min_p * probs.amax(-1, keepdim=True), -torch.inf)
    return logits, index


def invert(masses: Tensor, sums: Tensor, uniform: Tensor) -> Tensor:
    """The token, int64 [B], at which the cumulative mass passes `uniform` of the whole.

    masses: [B, N, BLOCK], not negative. sums: float64 [B, N], of the blocks. A token without mass is never returned.
    """
    rows = torch.arange(len(masses), device=masses.device)
    reached = _cumulative(sums)
    goal = uniform * reached[:, -1]
    block = (reached <= goal[:, None]).sum(1).clamp_(max=sums.shape[1] - 1)
    inner = masses[rows, block].double()
    rest = goal - (reached[rows, block] - sums[rows, block])
    place = (_cumulative(inner) <= rest[:, None]).sum(1).clamp_(max=BLOCK - 1)
    place = torch.where(inner[rows, place] > 0, place, inner.argmax(1))  # rounding went past the last token of the block
    return block * BLOCK + place


def draw_operations(vocabulary: int) -> float:
    """Floating-point operations of the matrix products that draw one token."""
    blocks = -(-vocabulary // BLOCK)
    return 2.0 * (blocks**2 + BLOCK**2)


def _draw_whole(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """As `sample`, of the whole distribution, in as few passes over the logits as it takes."""
    top = logits.amax(-1, keepdim=True)
    masses, sums = _masses(logits, top)
    tokens = invert(masses, sums, uniform)
    chosen = (logits.gather(1, tokens[:, None]) - top)[:, 0]
    return tokens, (chosen - sums.sum(1).log()).float()


def _masses(logits: Tensor, top: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """exp(logits - max) in blocks [B, N, BLOCK], zeros after the last, and the blocks' sums, float64 [B, N]."""
    rows, width = logits.shape
    blocks = -(-width // BLOCK)
    masses = logits.new_empty(rows, blocks * BLOCK)
    masses[:, width:] = 0.0
    top = logits.amax(-1, keepdim=True) if top is None else top
    torch.sub(logits, top, out=masses[:, :width]).exp_()
    grouped = masses.view(rows, blocks, BLOCK)
    return grouped, grouped.sum(-1).double()


def _logps(logits: Tensor, tokens: Tensor) -> Tensor:
    return (logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)).float()


def _cumulative(x: Tensor) -> Tensor:
    """Sums of float64 [B, N] along its rows; on a device as a matrix product, which is deterministic there."""
    return x.cumsum(-1) if x.device.type == "cpu" else x @ _triangle(x.shape[1], x.device)


@cache
def _triangle(size: int, device: torch.device) -> Tensor:
    """Float64 [size, size]: a row times it is the row's cumulative sum."""
    return torch.ones(size, size, dtype=torch.float64, device=device).triu_()
