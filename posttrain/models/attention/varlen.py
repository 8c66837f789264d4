"""Packed attention without sharing through variable-length flash attention (CUDA, 16 bits)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from posttrain.models.attention.layout import Layout, Scoring


def attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scoring: Scoring) -> Tensor:
    """Shapes as in `backends.Backend`. Raises ValueError for anything the kernel does not do: sharing, soft-capping, sinks, dropout."""
    if layout.shared or not scoring.plain:
        raise ValueError("variable-length attention does no shared segments, soft-capping, sinks or dropout")
    if "varlen" not in layout.cache:
        ends = [0, *(end for _, end, _ in layout.segments)]
        longest = max(end - start for start, end, _ in layout.segments)
        layout.cache["varlen"] = (torch.tensor(ends, dtype=torch.int32, device=q.device), longest)
    bounds, longest = layout.cache["varlen"]
    out = varlen_attn(
        q[0].transpose(0, 1), k[0].transpose(0, 1), v[0].transpose(0, 1), bounds, bounds, longest, longest,
        scale=scoring.scale, window_size=(-1 if scoring.window is None else scoring.window - 1, 0), enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out.transpose(0, 1).unsqueeze(0)
