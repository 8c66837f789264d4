"""Log-probabilities of targets from hidden states and the head's weight, without holding the logits.

The head's logits for N targets over a vocabulary of V are `[N, V]`; here only a block of the vocabulary exists at a time, forward and
backward, so peak memory grows with N x H and V x H, never with N x V. The log-sum-exp is carried from block to block (the online softmax
of Milakov and Gimelshein, arXiv:1805.02867, section 3). The last blocks' logits are kept for the backward pass up to a fixed size, so
that it need not compute them again: all of them where there are few targets. Accumulation is in float32 whatever the weights' type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.functional import blocks, fused
from posttrain.functional.ahead import Ahead, head_ahead, pays
from posttrain.functional.blocks import Asked, Slopes, no_sums
from posttrain.functional.head import (
    KEPT_ELEMENTS,
    PLAIN_HEAD,
    HeadSpec,
    add_product,
    compute_dtype,
    fitting_columns,
    head_logits,
    matmul_float32,
    matrix_in,
    part,
)
from posttrain.types import TokenStats


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
    collision: bool = False,
    slopes: Tensor | None = None,
    columns: int | None = None,
    kept: int = KEPT_ELEMENTS,
) -> TokenStats:
    """Statistics of `softmax(head(hidden))` at each target.

    hidden: [N, H]. weight: [V, H]. target: [N] int64. bias: [V] or None. Differentiable in hidden, weight and bias
    through `logps`, `lse`, `entropy` and `mean_logps`; `log_collision` (asked for by collision) has no gradient. Under autocast the
    matmuls run in its type. slopes: [N], the derivatives of what is differentiated in `logps`, up to a common factor, where they are
    known: gradients are then made in the forward pass where that pays; they are right even if the slopes were not. columns: vocabulary
    entries worked on at once, by default what fits the device. kept: logits kept for the backward pass, at most.

    Raises ValueError if shapes do not fit.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or target.shape != hidden.shape[:1]:
        raise ValueError(f"want hidden [N, H], weight [V, H], target [N]; got {hidden.shape}, {weight.shape}, {target.shape}")
    if slopes is not None and not (entropy or mean_logps or collision) and _is_ahead(hidden, weight, bias, head):
        logps, lse, hit = _KnownSlopes.apply(hidden, weight, target, slopes, head)
        return TokenStats(logps, lse, correct=hit if correct else None)
    plan = _Plan(entropy, mean_logps, correct, collision, columns or fitting_columns(len(target), hidden.device.type), kept)
    logps, lse, ent, mean, hit, same = _HeadStats.apply(hidden, weight, target, bias, head, plan)
    asked = {"entropy": ent if entropy else None, "mean_logps": mean if mean_logps else None, "correct": hit if correct else None}
    return TokenStats(logps, lse, **asked, log_collision=same if collision else None)


def computed_again(targets: int, vocabulary: int, device: str) -> int:
    """Logits that the backward pass of `token_stats` computes a second time, since they were not kept."""
    plan = _Plan(False, False, False, False, fitting_columns(targets, device), KEPT_ELEMENTS)
    return targets * plan.first_kept(targets, vocabulary)


def _is_ahead(hidden: Tensor, weight: Tensor, bias: Tensor | None, head: HeadSpec) -> bool:
    """Whether known slopes are made use of: the whole head is trained, and it pays."""
    trained = torch.is_grad_enabled() and hidden.requires_grad and weight.requires_grad
    whole = type(weight) in (Tensor, nn.Parameter) and hidden.dtype == weight.dtype and len(hidden) > 0
    half = compute_dtype(hidden) not in (torch.float32, torch.float64)
    return trained and whole and pays(hidden.device.type, half=half, softcap=head.softcap, bias=bias is not None)


class _KnownSlopes(torch.autograd.Function):
    """`head_ahead`, whose gradients are used once, and if the slopes turn out as they were known; else they are computed."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, slopes: Tensor, head: HeadSpec) -> tuple[Tensor, Tensor, Tensor]:
        found = head_ahead(hidden.detach(), weight.detach(), target, slopes.to(hidden.dtype), head)
        ctx.save_for_backward(hidden, weight, target, slopes)
        ctx.head, ctx.ahead = head, found
        ctx.mark_non_differentiable(found.correct)
        ctx.set_materialize_grads(False)
        return found.logps, found.lse, found.correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, target, slopes = ctx.saved_tensors
        ahead: Ahead | None = ctx.ahead
        ctx.ahead = None  # what is handed on now belongs to autograd
        by_logps, by_lse, _ = grads
        if ahead is not None and by_logps is not None and by_lse is None:
            found = ahead.times(slopes.to(hidden.dtype), by_logps)
            if found is not None:
                return *found, None, None, None
        del ahead
        with torch.enable_grad():
            h, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
            stats = token_stats(h, w, target, head=ctx.head)
            differentiated = [(out, g) for out, g in ((stats.logps, by_logps), (stats.lse, by_lse)) if out is not None and g is not None]
            if not differentiated:
                return None, None, None, None, None
            outs, slants = zip(*differentiated, strict=True)
            dh, dw = torch.autograd.grad(outs, (h, w), slants)
        return dh, dw, None, None, None


@dataclass(frozen=True)
class _Plan:
    """What is asked for, and how the vocabulary is cut."""

    entropy: bool
    mean_logps: bool
    correct: bool
    collision: bool
    columns: int
    kept: int

    @property
    def asked(self) -> Asked:
        return Asked(self.entropy, self.mean_logps, self.collision)

    def blocks(self, vocabulary: int) -> list[slice]:
        return [slice(a, min(a + self.columns, vocabulary)) for a in range(0, vocabulary, self.columns)]

    def first_kept(self, targets: int, vocabulary: int) -> int:
        """The vocabulary entry from which blocks are kept."""
        most = self.kept // max(1, targets)
        return next((block.start for block in self.blocks(vocabulary) if vocabulary - block.start <= most), vocabulary)


class _HeadStats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, head: HeadSpec, plan: _Plan
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        dtype = compute_dtype(hidden)
        h, w = hidden.detach().to(dtype), weight.detach().to(dtype)
        n, vocabulary = len(target), len(weight)
        wide = h.new_empty(0, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        keep_from = plan.first_kept(n, vocabulary) if any(ctx.needs_input_grad) else vocabulary
        scratch = wide.new_empty(n * min(plan.columns, vocabulary))
        kept = wide.new_empty(n * (vocabulary - keep_from))
        sums = no_sums(n, wide)
        for block in plan.blocks(vocabulary):
            place = matrix_in(scratch, n, block)
            goal = place if block.start < keep_from else _kept_block(kept, n, keep_from, block)
            logits = head_logits(h, w[block], part(bias, block), head, goal)
            if blocks.in_place(logits):
                sums = blocks.add_block(sums, logits, target - block.start, plan.asked, place)
            else:
                sums = fused.compiled(fused.add_block, sums, logits, target - block.start, plan.asked)
        lse = sums.mass.log() + sums.top
        entropy = sums.mass.log() - sums.lean / sums.mass if plan.entropy else wide
        mean = sums.total / vocabulary - lse if plan.mean_logps else wide
        correct = sums.picked >= sums.top
        same = sums.squares.log() - 2 * sums.mass.log() if plan.collision else wide
        ctx.save_for_backward(hidden, weight, target, bias, lse, entropy, kept)
        ctx.head, ctx.plan, ctx.dtype, ctx.keep_from = head, plan, dtype, keep_from
        ctx.mark_non_differentiable(correct, same)
        ctx.set_materialize_grads(False)
        return sums.picked - lse, lse, entropy, mean, correct, same

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, target, bias, lse, entropy, kept = ctx.saved_tensors
        need_h, need_w, _, need_b = ctx.needs_input_grad[:4]
        h, w = hidden.to(ctx.dtype), weight.to(ctx.dtype)
        n, vocabulary = len(target), len(weight)
        dh = lse.new_zeros(h.shape) if need_h else None
        dw = lse.new_empty(w.shape) if need_w else None
        db = lse.new_empty(vocabulary) if need_b else None
        scratch = lse.new_empty(n * min(ctx.plan.columns, vocabulary))
        slopes, wide = _slopes(lse, entropy, vocabulary, grads), ctx.dtype if db is None else lse.dtype
        for block in ctx.plan.blocks(vocabulary):
            place = matrix_in(scratch, n, block)
            # a kept block is left as it is: a graph may be walked twice
            known = _kept_block(kept, n, ctx.keep_from, block) if block.start >= ctx.keep_from else None
            logits = head_logits(h, w[block], part(bias, block), ctx.head, place) if known is None else known
            if blocks.in_place(logits):
                d = blocks.block_slopes(logits, target - block.start, lse, slopes, ctx.head, wide, place)
            else:
                d = fused.compiled(fused.block_slopes, logits, target - block.start, lse, slopes, ctx.head, wide)
            if db is not None:
                torch.sum(d, 0, out=db[block])
            d = d.to(ctx.dtype)
            if dh is not None:
                add_product(dh, d, w[block])
            if dw is not None:
                matmul_float32(d.t(), h, dw[block])
        cast_w = None if dw is None else dw.to(weight.dtype)
        cast_b = None if db is None or bias is None else db.to(bias.dtype)
        return (None if dh is None else dh.to(hidden.dtype)), cast_w, None, cast_b, None, None


def _kept_block(kept: Tensor, rows: int, keep_from: int, block: slice) -> Tensor:
    """A block's place [rows, columns] in the flat buffer of kept logits."""
    return matrix_in(kept[rows * (block.start - keep_from) :], rows, block)


def _slopes(lse: Tensor, entropy: Tensor, vocabulary: int, grads: tuple[Tensor | None, ...]) -> Slopes:
    """With respect to final logits, from those with respect to what `_HeadStats` returns.

    d logp_t = 1[v=t] - p; d lse = p; d mean_logp = 1/V - p; d entropy = -p (log p + entropy).
    """
    g_logps, g_lse, g_entropy, g_mean, *_ = grads
    by_mass = torch.zeros_like(lse)
    for g, sign in ((g_lse, 1.0), (g_logps, -1.0), (g_mean, -1.0)):
        if g is not None:
            by_mass = by_mass + sign * g
    known = None if g_entropy is None else entropy
    return Slopes(by_mass, g_logps, g_entropy, known, None if g_mean is None else g_mean / vocabulary)
