"""Plain float32 attention over a token tree on a CPU: causal blocks of matrix products.

PyTorch's CPU kernel for scaled-dot-product attention runs far below the machine's matmul rate on the short segments that trees are made
of, above all backward. Here a segment's queries are taken in blocks; a block multiplies with the keys it can see (its ancestors' and its
segment's up to its own end), all query heads of a key head at once. The probabilities are kept for the backward pass, so this is for
segments up to `LONGEST` keys; longer ones go to the kernel, whose memory does not grow with the square of the length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posttrain.models.attention.layout import Layout

BLOCK, LONGEST = 128, 1024


def applies(q: Tensor, layout: Layout, *, window: int | None) -> bool:
    """Whether every segment of a row can be computed here: float32 or float64 on a CPU, short, and nothing outside the window."""
    longest = layout.longest_path
    return not q.is_cuda and q.dtype in (torch.float32, torch.float64) and longest <= LONGEST and (window is None or window >= longest)


def attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, *, scale: float) -> Tensor:
    """q [1, H, T, D], k [1, G, T, D], v [1, G, T, E] -> [1, H, T, E], H a multiple of G."""
    out = _Blocked.apply(q, k, v, layout, scale)
    assert isinstance(out, Tensor)
    return out


def _causal(size: int, like: Tensor) -> Tensor:
    return torch.full((size, size), float("-inf"), dtype=like.dtype).triu_(1)


def _keys(x: Tensor, layout: Layout, index: int) -> Tensor:
    """[G, K, D]: a segment's ancestors' rows, then its own; a view where there are no ancestors."""
    parts = [x[:, start:end] for start, end, _ in (layout.segments[i] for i in (*layout.ancestors(index), index))]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _blocks(layout: Layout, index: int, total: int) -> list[tuple[int, int, int]]:
    """(first place, end place, number of keys seen) of every block of a segment's queries."""
    start, end, _ = layout.segments[index]
    before = total - (end - start)
    return [(s, min(s + BLOCK, end), before + min(s + BLOCK, end) - start) for s in range(start, end, BLOCK)]


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
        heads, groups, length, width = q.shape[1], k.shape[1], q.shape[2], v.shape[3]
        grouped = q[0].reshape(groups, heads // groups, length, q.shape[3])
        out = q.new_empty(groups, heads // groups, length, width)
        mask, kept = _causal(BLOCK, q), []
        for index in range(len(layout.segments)):
            keys, values = _keys(k[0], layout, index), _keys(v[0], layout, index)
            for s, e, seen in _blocks(layout, index, keys.shape[1]):
                rows = (grouped[:, :, s:e] * scale).reshape(groups, -1, q.shape[3])
                scores = torch.bmm(rows, keys[:, :seen].transpose(1, 2))
                size = e - s
                scores.view(groups, -1, size, seen)[..., seen - size :].add_(mask[:size, :size])
                probs = scores.softmax(-1)
                out[:, :, s:e] = torch.bmm(probs, values[:, :seen]).view(groups, -1, size, width)
                kept.append(probs)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.layout, ctx.scale = layout, scale
        return out.view(1, heads, length, width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        heads, groups, length = q.shape[1], k.shape[1], q.shape[2]
        grouped = q[0].reshape(groups, heads // groups, length, q.shape[3])
        upstream = grads[0][0].reshape(groups, heads // groups, length, v.shape[3])
        dq = q.new_empty(grouped.shape)
        dk, dv = torch.zeros_like(k[0]), torch.zeros_like(v[0])
        probabilities = iter(kept)
        for index in range(len(ctx.layout.segments)):
            keys, values = _keys(k[0], ctx.layout, index), _keys(v[0], ctx.layout, index)
            d_keys, d_values = torch.zeros_like(keys), torch.zeros_like(values)
            for s, e, seen in _blocks(ctx.layout, index, keys.shape[1]):
                probs = next(probabilities)
                rows = (grouped[:, :, s:e] * ctx.scale).reshape(groups, -1, q.shape[3])
                d_out = upstream[:, :, s:e].reshape(groups, -1, v.shape[3])
                d_values[:, :seen].baddbmm_(probs.transpose(1, 2), d_out)
                d_probs = torch.bmm(d_out, values[:, :seen].transpose(1, 2))
                d_scores = torch._softmax_backward_data(d_probs, probs, -1, probs.dtype)
                dq[:, :, s:e] = torch.bmm(d_scores, keys[:, :seen]).mul_(ctx.scale).view(groups, -1, e - s, q.shape[3])
                d_keys[:, :seen].baddbmm_(d_scores.transpose(1, 2), rows)
            _scatter(dk, d_keys, ctx.layout, index)
            _scatter(dv, d_values, ctx.layout, index)
        return dq.reshape(q.shape), dk[None], dv[None], None, None


def _scatter(total: Tensor, part: Tensor, layout: Layout, index: int) -> None:
    """Add a segment's key gradients [G, K, D] to where its ancestors' and its own keys lie in the row."""
    place = 0
    for start, end, _ in (layout.segments[i] for i in (*layout.ancestors(index), index)):
        total[:, start:end] += part[:, place : place + end - start]
        place += end - start
