"""Plain float32 attention over a token tree on a CPU: causal blocks of matrix products.

PyTorch's CPU kernel for scaled-dot-product attention runs far below the machine's matmul rate on the short segments that trees are made
of, above all backward. Here a row is cut into pieces (see `pieces`), each of them one batched product over all heads, with keys and values
repeated for every query head that shares them so that the cores get equal parts. The probabilities are kept for the backward pass, so
this is for paths up to `LONGEST` keys; longer ones go to the kernel, whose memory does not grow with the square of the length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posttrain.models.attention.layout import Layout
from posttrain.models.attention.pieces import pieces_of

LONGEST = 1024


def applies(q: Tensor, layout: Layout, *, window: int | None) -> bool:
    """Whether every segment of a row can be computed here: float32 or float64 on a CPU, short, and nothing outside the window.

    Not under autocast, which would compute every product in another type than what surrounds it.
    """
    if q.is_cuda or q.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled("cpu"):
        return False
    longest = layout.longest_path
    return longest <= LONGEST and (window is None or window >= longest)


def attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, *, scale: float) -> Tensor:
    """q [1, H, T, D], k [1, G, T, D], v [1, G, T, E] -> [1, H, T, E], H a multiple of G."""
    out = _Blocked.apply(q, k, v, layout, scale)
    assert isinstance(out, Tensor)
    return out


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
        heads, length, width = q.shape[1], q.shape[2], v.shape[3]
        queries, keys, values = _scaled(q[0], scale), _per_head(k[0], heads), _per_head(v[0], heads)
        out = q.new_empty(length, heads, width)  # the order in which the model goes on
        needed, kept = any(ctx.needs_input_grad), []
        for piece in pieces_of(layout):
            scores = torch.bmm(piece.queries(queries), piece.keys(keys).transpose(1, 2))
            piece.hide(scores)
            probs = scores.softmax(-1)
            piece.put(out, torch.bmm(probs, piece.keys(values)))
            if needed:
                kept.append(probs)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.layout, ctx.scale = layout, scale
        return out.transpose(0, 1)[None]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        heads, length = q.shape[1], q.shape[2]
        queries, keys, values = _scaled(q[0], ctx.scale), _per_head(k[0], heads), _per_head(v[0], heads)
        upstream = grads[0][0].contiguous()
        dq = q.new_empty(length, heads, q.shape[3])
        dk, dv = torch.zeros_like(keys), torch.zeros_like(values)
        for piece, probs in zip(pieces_of(ctx.layout), kept, strict=True):
            d_out = piece.slopes(upstream)
            piece.add(dv, torch.bmm(probs.transpose(1, 2), d_out))
            d_probs = torch.bmm(d_out, piece.keys(values).transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_probs, probs, -1, probs.dtype)
            piece.put(dq, torch.bmm(d_scores, piece.keys(keys)).mul_(ctx.scale))
            piece.add(dk, torch.bmm(d_scores.transpose(1, 2), piece.queries(queries)))
        return dq.transpose(0, 1)[None], _per_group(dk, k.shape[1]), _per_group(dv, v.shape[1]), None, None


def _scaled(q: Tensor, scale: float) -> Tensor:
    """q * scale, [H, T, D], contiguous."""
    return torch.mul(q, scale, out=q.new_empty(q.shape))


def _per_head(x: Tensor, heads: int) -> Tensor:
    """Keys or values [G, T, D] repeated for every query head, [H, T, D], contiguous."""
    return x[:, None].expand(-1, heads // len(x), -1, -1).reshape(heads, *x.shape[1:]).contiguous()


def _per_group(x: Tensor, groups: int) -> Tensor:
    """Gradients [H, T, D] summed over the query heads that share a key head, [1, G, T, D]."""
    return x.view(1, groups, -1, *x.shape[1:]).sum(2)
