"""Tree attention through FlexAttention with a block mask: one kernel call a layer. CUDA for training (no backward on CPU).

A compiled kernel is compared with plain attention when it is first used, on what it was used for: a kernel that reads a mask otherwise than
it was meant trains on wrong attention, and nothing else would show it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from posttrain.errors import Problem, UserError
from posttrain.functional.cuts import FLEX_BLOCK
from posttrain.models.attention.blockmask import block_mask
from posttrain.models.attention.layout import Layout, Scoring

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}  # a wrong mask is above 0.1
CHECKED = 64  # queries that are compared, from the first to the last


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
    if scoring.sinks is not None:
        # A sink adds exp(sink) to the softmax's mass and nothing to its value.
        out = out * torch.sigmoid(aux.lse - scoring.sinks.view(1, -1, 1)).unsqueeze(-1).to(out.dtype)
    if q.is_cuda:
        _trust(out, q, k, v, mask, scoring)
    return out


_trusted: set[tuple[object, ...]] = set()


def _trust(out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scoring: Scoring) -> None:
    """Compare the first output of each kernel over more than two blocks. Raises UserError where it is wrong."""
    kind = (torch.is_grad_enabled(), q.dtype, q.shape[1], k.shape[1], q.shape[3], v.shape[3], scoring.softcap, scoring.sinks is None)
    if kind in _trusted or q.shape[2] <= 2 * FLEX_BLOCK:
        return
    wrong = difference(out, q, k, v, mask, scoring)
    if wrong > TOLERANCE[q.dtype]:
        message = f"FlexAttention's kernel does not compute attention on this device: relative error {wrong:.1e}"
        raise UserError(Problem("model.attention", message, "model.attention=sdpa"))
    _trusted.add(kind)


@torch.no_grad()
def difference(out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scoring: Scoring) -> float:
    """Relative error of an output, at some of its queries, against attention written out in float32. Shapes as in `attend`."""
    places = torch.linspace(0, q.shape[2] - 1, CHECKED, device=q.device).long().unique()
    seen = mask.mask_mod(places, places, places[:, None], torch.arange(k.shape[2], device=q.device)[None])
    near, keys, values = q[:, :, places].float(), *(x.float().repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = near @ keys.transpose(2, 3) * scoring.scale
    if scoring.softcap is not None:
        scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
    scores = scores.masked_fill(~seen, -torch.inf)
    if scoring.sinks is not None:
        scores = torch.cat([scores, scoring.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], -1)
    wanted = scores.softmax(-1)[..., : k.shape[2]] @ values
    return float((out[:, :, places].float() - wanted).norm() / wanted.norm())


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
