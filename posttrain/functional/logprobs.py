"""Log-probabilities of targets from hidden states and the head's weight, without holding the logits.

The head's logits for N targets over a vocabulary of V are `[N, V]`; here only a chunk of rows exists at a time, forward and backward,
so peak memory grows with N x H and V x H, never with N x V. The last chunk's probabilities are kept for the backward pass, which then
need not compute them again: all of them where there are few targets. Accumulation is in float32 whatever the weights' type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posttrain.types import TokenStats

CHUNK_ELEMENTS = 1 << 24  # float32 logits held at once: 64 MiB, enough rows to keep the matmuls efficient


@dataclass(frozen=True)
class HeadSpec:
    """How logits come from `hidden @ weight.T (+ bias)`: multiplied by `scale`, soft-capped, then divided by `temperature`.

    softcap: c in c * tanh(x / c) (Gemma 2, arXiv:2408.00118, section 2); None for none.
    """

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.softcap is not None and self.softcap <= 0:
            raise ValueError(f"softcap must be positive, got {self.softcap}")


PLAIN_HEAD = HeadSpec()


def token_stats(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    head: HeadSpec = PLAIN_HEAD,
    entropy: bool = False,
    mean_logps: bool = False,
    correct: bool = False,
    chunk_rows: int | None = None,
) -> TokenStats:
    """Statistics of `softmax(head(hidden))` at each target.

    hidden: [N, H]. weight: [V, H]. target: [N] int64. bias: [V] or None. Differentiable in hidden, weight and bias
    through `logps`, `lse`, `entropy` and `mean_logps`. Under autocast the matmuls run in its type.

    Raises ValueError if shapes do not fit.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or target.shape != hidden.shape[:1]:
        raise ValueError(f"want hidden [N, H], weight [V, H], target [N]; got {hidden.shape}, {weight.shape}, {target.shape}")
    rows = chunk_rows or max(1, CHUNK_ELEMENTS // weight.shape[0])
    logps, lse, ent, mean, hit = _HeadStats.apply(hidden, weight, target, bias, head, _Wanted(entropy, mean_logps, correct), rows)
    return TokenStats(logps, lse, ent if entropy else None, mean if mean_logps else None, hit if correct else None)


@dataclass(frozen=True)
class _Wanted:
    entropy: bool
    mean_logps: bool
    correct: bool


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _matmul_float32(left: Tensor, right: Tensor) -> Tensor:
    """left @ right with a float32 (or wider) result, without rounding to bf16 where the device can avoid it."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


def _raw_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, head: HeadSpec) -> tuple[Tensor, Tensor | None]:
    """Final logits [n, V] and the derivative of soft-capping and scaling ([n, V]; None where it is the constant scale / temperature)."""
    logits = _matmul_float32(hidden, weight.t())
    if bias is not None:
        logits += bias
    slope = None
    if head.scale != 1.0:
        logits *= head.scale
    if head.softcap is not None:
        squashed = torch.tanh_(logits.div_(head.softcap))
        slope = (1 - squashed.square()).mul_(head.scale / head.temperature)
        logits = squashed.mul_(head.softcap)
    if head.temperature != 1.0:
        logits /= head.temperature
    return logits, slope


class _HeadStats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, head: HeadSpec, wanted: _Wanted, rows: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        dtype = _compute_dtype(hidden)
        h, w = hidden.detach().to(dtype), weight.detach().to(dtype)
        out = torch.float64 if dtype == torch.float64 else torch.float32
        n = hidden.shape[0]
        logps, lse, entropy, mean = (torch.empty(n, dtype=out, device=h.device) for _ in range(4))
        correct = torch.empty(n, dtype=torch.bool, device=h.device)
        keep = head.softcap is None and not wanted.entropy and any(ctx.needs_input_grad)
        last_probs = None
        for start in range(0, n, rows):
            part = slice(start, min(start + rows, n))
            logits, _ = _raw_logits(h[part], w, bias, head)
            picked = logits.gather(1, target[part, None]).squeeze(1)
            top = logits.amax(1)
            if wanted.correct:
                correct[part] = picked >= top
            if wanted.mean_logps:
                mean[part] = logits.mean(1)
            probs = (logits - top[:, None] if wanted.entropy else logits.sub_(top[:, None])).exp_()
            mass = probs.sum(1)
            lse[part] = mass.log() + top
            logps[part] = picked - lse[part]
            if wanted.entropy:
                entropy[part] = lse[part] - (probs.mul_(logits)).sum(1) / mass
            if keep and part.stop == n:
                last_probs = probs.div_(mass[:, None])
        if wanted.mean_logps:
            mean -= lse
        ctx.save_for_backward(hidden, weight, target, bias, lse, entropy, last_probs)
        ctx.head, ctx.wanted, ctx.rows, ctx.dtype = head, wanted, rows, dtype
        ctx.mark_non_differentiable(correct)
        ctx.set_materialize_grads(False)
        return logps, lse, entropy, mean, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        g_logps, g_lse, g_entropy, g_mean, _ = grads
        hidden, weight, target, bias, lse, entropy, last_probs = ctx.saved_tensors
        need_h, need_w, _, need_b = ctx.needs_input_grad[:4]
        h, w = hidden.to(ctx.dtype), weight.to(ctx.dtype)
        wide = lse.dtype
        dh = torch.empty_like(h) if need_h else None
        dw = torch.zeros(weight.shape, dtype=wide, device=weight.device) if need_w else None
        db = torch.zeros(weight.shape[0], dtype=wide, device=weight.device) if need_b else None

        def rows_of(g: Tensor | None, part: slice) -> Tensor | None:
            return None if g is None else g[part, None]

        for start in range(0, h.shape[0], ctx.rows):
            part = slice(start, min(start + ctx.rows, h.shape[0]))
            upstream = rows_of(g_logps, part), rows_of(g_lse, part), rows_of(g_entropy, part), rows_of(g_mean, part)
            if last_probs is not None and part.stop == h.shape[0]:
                probs, slope, tilt = last_probs, None, None
            else:
                logits, slope = _raw_logits(h[part], w, bias, ctx.head)
                probs, tilt = _probabilities(logits, lse[part, None], entropy[part, None], upstream[2])
            d = _logit_grad(probs, tilt, target[part, None], upstream)
            d = d.mul_(slope) if slope is not None else _times(d, ctx.head.scale / ctx.head.temperature)
            if db is not None:
                db += d.sum(0)
            d = d.to(ctx.dtype)
            if dh is not None:
                torch.mm(d, w, out=dh[part])
            if dw is not None:
                _accumulate(dw, d, h[part])
        cast_w = None if dw is None else dw.to(weight.dtype)
        cast_b = None if db is None or bias is None else db.to(bias.dtype)
        return (None if dh is None else dh.to(hidden.dtype)), cast_w, None, cast_b, None, None, None


def _times(d: Tensor, factor: float) -> Tensor:
    return d if factor == 1.0 else d.mul_(factor)


def _accumulate(dw: Tensor, d: Tensor, h: Tensor) -> None:
    """dw += d.T @ h in dw's (wide) type."""
    if d.dtype == dw.dtype:
        dw.addmm_(d.t(), h)
    else:
        dw += _matmul_float32(d.t(), h)


Upstream = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def _probabilities(logits: Tensor, lse: Tensor, entropy: Tensor, g_entropy: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """p [n, V], written over `logits`, and the entropy's factor of p in the gradient, g (log p + entropy)."""
    logp = logits.sub_(lse)
    tilt = None if g_entropy is None else (logp + entropy).mul_(g_entropy)
    return logp.exp_(), tilt


def _logit_grad(probs: Tensor, tilt: Tensor | None, target: Tensor, upstream: Upstream) -> Tensor:
    """Gradient with respect to the final logits, [n, V]. upstream: of logps, lse, entropy and mean_logps, [n, 1].

    d logp_t = 1[v=t] - p; d lse = p; d mean_logp = 1/V - p; d entropy = -p (log p + entropy).
    """
    g_logps, g_lse, _, g_mean = upstream
    coefficient: Tensor | float = 0.0
    for g, sign in ((g_lse, 1.0), (g_logps, -1.0), (g_mean, -1.0)):
        if g is not None:
            coefficient = coefficient + sign * g
    d = probs * (coefficient if tilt is None else coefficient - tilt)  # not in place: a graph may be walked twice
    if g_mean is not None:
        d += g_mean / probs.shape[1]
    if g_logps is not None:
        d.scatter_add_(1, target, g_logps.to(d.dtype))
    return d
