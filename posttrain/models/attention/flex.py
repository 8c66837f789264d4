"""Tree attention through FlexAttention with a block mask: one kernel call a layer. CUDA for training (no backward on CPU)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from posttrain.models.attention.blockmask import block_mask
from posttrain.models.attention.layout import Layout, Scoring


def attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scoring: Scoring) -> Tensor:
    """Shapes as in `backends.Backend`. Raises ValueError for attention dropout, which FlexAttention does not have."""
    key = ("flex", scoring.window, q.device)
    if key not in layout.cache:
        layout.cache[key] = block_mask(layout, window=scoring.window, device=q.device)
    return attend(q, k, v, layout.cache[key], scoring)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scoring: Scoring) -> Tensor:
    """q [1, H, L, D], k [1, G, K, D], v [1, G, K, E] -> [1, H, L, E], with what the mask of L queries and K keys leaves."""
    if scoring.dropout:
        raise ValueError("FlexAttention has no dropout: set the model's attention_dropout to 0 or model.attention=sdpa")
    kernel = _compiled() if q.is_cuda else flex_attention
    with torch._dynamo.config.patch(specialize_float=True):  # a soft-cap that is a variable of the graph cannot be lowered
        out, aux = kernel(
            q, k, v, score_mod=_softcap(scoring.softcap), block_mask=mask, scale=scoring.scale,
            enable_gqa=q.shape[1] != k.shape[1], return_aux=AuxRequest(lse=True),
        )  # fmt: skip
    if scoring.sinks is None:
        return out
    # A sink adds exp(sink) to the softmax's mass and nothing to its value.
    return out * torch.sigmoid(aux.lse - scoring.sinks.view(1, -1, 1)).unsqueeze(-1).to(out.dtype)


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
