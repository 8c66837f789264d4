"""Tree attention through FlexAttention with a block mask: one kernel call a layer. CUDA for training (no backward on CPU)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

from posttrain.models.attention.layout import Layout, Scoring


def attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scoring: Scoring) -> Tensor:
    """Shapes as in `backends.Backend`. Raises ValueError for attention dropout, which FlexAttention does not have."""
    if scoring.dropout:
        raise ValueError("FlexAttention has no dropout: set the model's attention_dropout to 0 or model.attention=sdpa")
    key = ("flex", scoring.window, q.device)
    if key not in layout.cache:
        layout.cache[key] = block_mask(layout, scoring.window, q.device)
    kernel = _compiled() if q.is_cuda else flex_attention
    out, aux = kernel(
        q, k, v, score_mod=_softcap(scoring.softcap), block_mask=layout.cache[key], scale=scoring.scale,
        enable_gqa=q.shape[1] != k.shape[1], return_aux=AuxRequest(lse=True),
    )  # fmt: skip
    if scoring.sinks is None:
        return out
    # A sink adds exp(sink) to the softmax's mass and nothing to its value.
    return out * torch.sigmoid(aux.lse - scoring.sinks.view(1, -1, 1)).unsqueeze(-1).to(out.dtype)


def block_mask(layout: Layout, window: int | None, device: torch.device) -> BlockMask:
    """Which keys a query sees: its segment's and ancestors', not after it, within the window."""
    total = layout.segments[-1][1]
    lengths = torch.tensor([end - start for start, end, _ in layout.segments])
    segment = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(device)
    kin = torch.eye(len(lengths), dtype=torch.bool)
    for index in range(len(lengths)):
        kin[index, layout.ancestors(index)] = True
    kin, positions = kin.to(device), layout.positions.to(device)

    def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        visible = (key <= query) & kin[segment[query], segment[key]]
        return visible if window is None else visible & (positions[query] - positions[key] < window)

    return create_block_mask(seen, None, None, total, total, device=device)


def _softcap(softcap: float | None) -> Callable[..., Tensor] | None:
    if softcap is None:
        return None
    return _capped(softcap)


@cache
def _capped(softcap: float) -> Callable[..., Tensor]:
    """One function object a value, so that compilation is not repeated."""

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return torch.tanh(score / softcap) * softcap

    return capped


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)
