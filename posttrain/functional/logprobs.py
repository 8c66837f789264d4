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
from torch import Tensor

from posttrain.types import TokenStats

# Float32 logits of one block: small enough on a CPU to stay in its cache, large enough on a device to keep the matmuls efficient.
BLOCK_ELEMENTS = {"cpu": 1 << 22}
DEVICE_BLOCK_ELEMENTS = 1 << 24
KEPT_ELEMENTS = 1 << 24  # logits kept for the backward pass: 64 MiB
LEAST_COLUMNS = 256


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
    collision: bool = False,
    columns: int | None = None,
    kept: int = KEPT_ELEMENTS,
) -> TokenStats:
    """Statistics of `softmax(head(hidden))` at each target.

    hidden: [N, H]. weight: [V, H]. target: [N] int64. bias: [V] or None. Differentiable in hidden, weight and bias
    through `logps`, `lse`, `entropy` and `mean_logps`; `log_collision` (asked for by collision) has no gradient. Under autocast the
    matmuls run in its type. columns: vocabulary entries worked on at once, by default what fits the device. kept: logits kept for the
    backward pass, at most.

    Raises ValueError if shapes do not fit.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or target.shape != hidden.shape[:1]:
        raise ValueError(f"want hidden [N, H], weight [V, H], target [N]; got {hidden.shape}, {weight.shape}, {target.shape}")
    plan = _Plan(entropy, mean_logps, correct, collision, columns or _columns(len(target), hidden.device.type), kept)
    logps, lse, ent, mean, hit, same = _HeadStats.apply(hidden, weight, target, bias, head, plan)
    asked = {"entropy": ent if entropy else None, "mean_logps": mean if mean_logps else None, "correct": hit if correct else None}
    return TokenStats(logps, lse, **asked, log_collision=same if collision else None)


def _columns(targets: int, device: str) -> int:
    """Vocabulary entries of a block that fits the kind of device."""
    fitting = BLOCK_ELEMENTS.get(device, DEVICE_BLOCK_ELEMENTS) // max(1, targets)
    return max(LEAST_COLUMNS, fitting // LEAST_COLUMNS * LEAST_COLUMNS)


def computed_again(targets: int, vocabulary: int, device: str) -> int:
    """Logits that the backward pass of `token_stats` computes a second time, since they were not kept."""
    plan = _Plan(False, False, False, False, _columns(targets, device), KEPT_ELEMENTS)
    return targets * plan.first_kept(targets, vocabulary)


@dataclass(frozen=True)
class _Plan:
    """What is asked for, and how the vocabulary is cut."""

    entropy: bool
    mean_logps: bool
    correct: bool
    collision: bool
    columns: int
    kept: int

    def blocks(self, vocabulary: int) -> list[slice]:
        return [slice(a, min(a + self.columns, vocabulary)) for a in range(0, vocabulary, self.columns)]

    def first_kept(self, targets: int, vocabulary: int) -> int:
        """The vocabulary entry from which blocks are kept."""
        most = self.kept // max(1, targets)
        return next((block.start for block in self.blocks(vocabulary) if vocabulary - block.start <= most), vocabulary)


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The type that the head's matmul runs in: autocast's where it is on."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _matmul_float32(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ right with a float32 (or wider) result, without rounding to bf16 where the device can avoid it; `out` may be its place."""
    if left.dtype in (torch.float32, torch.float64):
        return torch.mm(left, right) if out is None else torch.mm(left, right, out=out)
    product = torch.mm(left, right, out_dtype=torch.float32) if left.is_cuda else (left @ right).float()
    return product if out is None else out.copy_(product)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right in total's (wide) type."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += _matmul_float32(left, right)


def head_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, head: HeadSpec, out: Tensor | None = None) -> Tensor:
    """Final logits [N, v] of hidden [N, H] and a block [v, H] of the head, of one type; at least float32; written to `out` if given."""
    return finished_logits(_matmul_float32(hidden, weight.t(), out), bias, head)


def finished_logits(logits: Tensor, bias: Tensor | None, head: HeadSpec) -> Tensor:
    """Final logits from `hidden @ weight.T` [N, v], which is overwritten."""
    if bias is not None:
        logits += bias
    if head.scale != 1.0:
        logits *= head.scale
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_().mul_(head.softcap)
    if head.temperature != 1.0:
        logits /= head.temperature
    return logits


def _times_slope(d: Tensor, logits: Tensor | None, head: HeadSpec) -> Tensor:
    """d times the derivative of the final logits with respect to `hidden @ weight.T`; logits: needed under soft-capping."""
    if head.softcap is not None:
        assert logits is not None
        d *= 1 - (logits * (head.temperature / head.softcap)).square_()
    factor = head.scale / head.temperature
    return d if factor == 1.0 else d.mul_(factor)


class _Running:
    """Sums over the vocabulary so far, of N rows: m = max l, sum e^(l - m), sum e^(l - m) (l - m), sum l, sum e^(2 (l - m))."""

    def __init__(self, rows: int, like: Tensor) -> None:
        self.top = like.new_full((rows,), -torch.inf)
        self.mass, self.lean, self.total, self.squares = (like.new_zeros(rows) for _ in range(4))

    def add(self, logits: Tensor, plan: _Plan, scratch: Tensor) -> None:
        """Take in a block [N, v]; `scratch` [N, v] may be the block itself, which is then lost."""
        if plan.mean_logps:
            self.total += logits.sum(1)
        top = torch.maximum(self.top, logits.amax(1))
        fall = torch.where(self.top == top, 0.0, self.top - top)
        scale = fall.exp()
        shifted = torch.sub(logits, top[:, None], out=scratch)
        if plan.entropy:
            grown = shifted.exp()
            # the mass before this block is 0 where the fall is infinite
            self.lean = scale * (self.lean + torch.where(self.mass > 0, fall, 0.0) * self.mass) + (shifted * grown).sum(1)
        else:
            grown = shifted.exp_()
        self.mass = scale * self.mass + grown.sum(1)
        if plan.collision:
            self.squares = scale.square() * self.squares + grown.square().sum(1)
        self.top = top


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
        blocks = plan.blocks(vocabulary)
        scratch = wide.new_empty(n * min(plan.columns, vocabulary))
        kept = wide.new_empty(n * (vocabulary - keep_from))
        running, picked = _Running(n, wide), wide.new_zeros(n)
        for block in blocks:
            place = _matrix(scratch, n, block)
            goal = place if block.start < keep_from else _kept_block(kept, n, keep_from, block)
            logits = head_logits(h, w[block], _part(bias, block), head, goal)
            inside, column = _within(target, block)
            picked = torch.where(inside, logits.gather(1, column[:, None])[:, 0], picked)
            running.add(logits, plan, place)
        lse = running.mass.log() + running.top
        entropy = running.mass.log() - running.lean / running.mass if plan.entropy else wide
        mean = running.total / vocabulary - lse if plan.mean_logps else wide
        correct = picked >= running.top
        same = running.squares.log() - 2 * running.mass.log() if plan.collision else wide
        ctx.save_for_backward(hidden, weight, target, bias, lse, entropy, kept)
        ctx.head, ctx.plan, ctx.dtype, ctx.keep_from = head, plan, dtype, keep_from
        ctx.mark_non_differentiable(correct, same)
        ctx.set_materialize_grads(False)
        return picked - lse, lse, entropy, mean, correct, same

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
        for block in ctx.plan.blocks(vocabulary):
            place = _matrix(scratch, n, block)
            # a kept block is left as it is: a graph may be walked twice
            known = _kept_block(kept, n, ctx.keep_from, block) if block.start >= ctx.keep_from else None
            logits = head_logits(h, w[block], _part(bias, block), ctx.head, place) if known is None else known
            slope_from = None if ctx.head.softcap is None else logits.clone() if known is None else known
            d = _logit_grad(logits, place, lse, entropy, _within(target, block), vocabulary, grads)
            d = _times_slope(d, slope_from, ctx.head)
            if db is not None:
                torch.sum(d, 0, out=db[block])
            d = d.to(ctx.dtype)
            if dh is not None:
                _add_product(dh, d, w[block])
            if dw is not None:
                _matmul_float32(d.t(), h, dw[block])
        cast_w = None if dw is None else dw.to(weight.dtype)
        cast_b = None if db is None or bias is None else db.to(bias.dtype)
        return (None if dh is None else dh.to(hidden.dtype)), cast_w, None, cast_b, None, None


def _matrix(scratch: Tensor, rows: int, block: slice) -> Tensor:
    """The beginning of a flat buffer as [rows, columns of the block]."""
    return scratch[: rows * (block.stop - block.start)].view(rows, block.stop - block.start)


def _kept_block(kept: Tensor, rows: int, keep_from: int, block: slice) -> Tensor:
    """A block's place [rows, columns] in the flat buffer of kept logits."""
    return _matrix(kept[rows * (block.start - keep_from) :], rows, block)


def _part(bias: Tensor | None, block: slice) -> Tensor | None:
    return None if bias is None else bias.detach()[block]


def _within(target: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Whether each target lies in the block, and its column there (any column where it does not)."""
    return (target >= block.start) & (target < block.stop), (target - block.start).clamp(0, block.stop - block.start - 1)


def _logit_grad(
    logits: Tensor,
    out: Tensor,
    lse: Tensor,
    entropy: Tensor,
    targets: tuple[Tensor, Tensor],
    vocabulary: int,
    grads: tuple[Tensor | None, ...],
) -> Tensor:
    """Gradient with respect to a block of final logits, [N, v], written to `out` (which may be `logits`).

    d logp_t = 1[v=t] - p; d lse = p; d mean_logp = 1/V - p; d entropy = -p (log p + entropy).
    """
    g_logps, g_lse, g_entropy, g_mean, *_ = grads
    coefficient = torch.zeros_like(lse)
    for g, sign in ((g_lse, 1.0), (g_logps, -1.0), (g_mean, -1.0)):
        if g is not None:
            coefficient = coefficient + sign * g
    logp = torch.sub(logits, lse[:, None], out=out)
    if g_entropy is None:
        d = logp.exp_().mul_(coefficient[:, None])
    else:
        lean = coefficient[:, None] - (logp + entropy[:, None]).mul_(g_entropy[:, None])
        d = logp.exp_().mul_(lean)
    if g_mean is not None:
        d += g_mean[:, None] / vocabulary
    if g_logps is not None:
        inside, column = targets
        d.scatter_add_(1, column[:, None], (g_logps.to(d.dtype) * inside)[:, None])
    return d
