"""Tree attention as a loop over segments with SDPA; runs anywhere."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from posttrain.models.attention import blocked
from posttrain.models.attention.layout import Layout, Scoring


def attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scoring: Scoring) -> Tensor:
    """One attention call a segment, over its ancestors' keys and its own. Shapes as in `backends.Backend`."""
    if scoring.plain and blocked.applies(q, layout, window=scoring.window):
        return blocked.attention(q, k, v, layout, scale=scoring.scale)
    lengths = [end - start for start, end, _ in layout.segments]
    queries, keys, values = q.split(lengths, 2), k.split(lengths, 2), v.split(lengths, 2)
    outs = []
    for index, length in enumerate(lengths):
        chain = [*layout.ancestors(index), index]
        near_k = keys[index] if len(chain) == 1 else torch.cat([keys[i] for i in chain], 2)
        near_v = values[index] if len(chain) == 1 else torch.cat([values[i] for i in chain], 2)
        seen = _mask(layout, length, near_k.shape[2], scoring.window, q.device)
        if scoring.softcap is None and scoring.sinks is None:
            with _kernels(q.device):
                out = F.scaled_dot_product_attention(
                    queries[index], near_k, near_v, attn_mask=seen, is_causal=seen is None, scale=scoring.scale, dropout_p=scoring.dropout,
                    enable_gqa=True,
                )  # fmt: skip
        else:
            out = _explicit(queries[index], near_k, near_v, seen, scoring)
        outs.append(out)
    return torch.cat(outs, 2)


def _kernels(device: torch.device) -> AbstractContextManager[None]:
    """Not cuDNN's on a device: for every new length it first plans what takes longer than the attention."""
    kinds = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(kinds) if device.type == "cuda" else nullcontext()


def _mask(layout: Layout, length: int, total: int, window: int | None, device: torch.device) -> Tensor | None:
    """Boolean [length, total] mask of a segment whose last `length` keys are its own; None where plain causality says it all."""
    windowed = window if window is not None and window < total else None
    if length == total and windowed is None:
        return None
    key = (length, total, windowed)
    if key not in layout.cache:
        place = torch.arange(total - length, total, device=device)[:, None]
        other = torch.arange(total, device=device)[None]
        seen = other <= place
        layout.cache[key] = seen if windowed is None else seen & (place - other < windowed)
    return layout.cache[key]


def _explicit(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scoring: Scoring) -> Tensor:
    """Attention with the scores written out, for soft-capping (Gemma 2, arXiv:2408.00118) and sinks (an extra score without a value)."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q @ k.transpose(2, 3)) * scoring.scale
    if scoring.softcap is not None:
        scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
    if seen is None:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    scores = scores.masked_fill(~seen, float("-inf"))
    if scoring.sinks is not None:
        extra = scoring.sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1).to(scores.dtype)
        scores = torch.cat([scores, extra], -1)
    probs = scores.softmax(-1, dtype=torch.float32).to(q.dtype)[..., : k.shape[2]]
    return F.dropout(probs, scoring.dropout) @ v
