"""Attention over a row that is cut over the ranks of a group: ranks exchange stretches of the row for heads (Ulysses, arXiv:2309.14509).

Each rank holds the queries, keys and values of all heads of an equal stretch. An all-to-all gives it those of the whole row for its share
of the heads; it attends as it would over a row that is not cut; a second all-to-all brings the stretches back together. Gradients go the
same way. A rank holds the whole row's keys and values, of its heads alone, and any attention that is there does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from posttrain.models.attention.layout import Layout, Scoring
from posttrain.models.attention.passing import ALONE, Ring

Attend = Callable[[Tensor, Tensor, Tensor, Layout, Scoring], Tensor]
WHOLE = "whole row"  # in a layout's cache


def attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scoring: Scoring, *, attend: Attend) -> Tensor:
    """This rank's part of the attention over a row that `layout` describes whole, cut over the ranks of `layout.ring`.

    q [1, H, L, D], k [1, G, L, D], v [1, G, L, E] of its stretch, H a multiple of G and of the ranks -> [1, H, L, E]. Key heads that are no
    multiple of the ranks are repeated until they are. attend: attention over the whole row. Every rank of the group calls it, and goes
    backward through it, as often as the others. Raises ValueError where heads or L do not fit the ranks, and for sinks and dropout.
    """
    ring = layout.ring
    if scoring.sinks is not None or scoring.dropout:
        raise ValueError("attention over exchanged heads has neither sinks nor dropout")
    if q.shape[2] * ring.size != layout.segments[-1][1]:
        raise ValueError(f"{ring.size} stretches of {q.shape[2]} tokens are not a row of {layout.segments[-1][1]}")
    if q.shape[1] % ring.size:
        raise ValueError(f"{q.shape[1]} heads are not shared out evenly over {ring.size} ranks")
    repeats = ring.size // math.gcd(k.shape[1], ring.size)
    if repeats > 1:  # rank r's query heads then meet the keys that they meet in the whole model
        k, v = (x.repeat_interleave(repeats, 1) for x in (k, v))
    queries, keys, values = (_to_heads(x, ring) for x in (q, k, v))
    out = attend(queries, keys, values, _whole(layout, q.device), scoring)
    return _to_stretch(out, ring)


def _whole(layout: Layout, device: torch.device) -> Layout:
    """The layout of the row that is not cut; once a micro-batch."""
    if WHOLE not in layout.cache:
        ends: list[int] = []
        positions = []
        for start, end, parent in layout.segments:
            before = ends[parent] if parent >= 0 else 0
            ends.append(before + end - start)
            positions.append(torch.arange(before, ends[-1], device=device))
        layout.cache[WHOLE] = replace(layout, positions=torch.cat(positions), backend=layout.within, cache={}, ring=ALONE)
    found: Layout = layout.cache[WHOLE]
    return found


def _to_heads(x: Tensor, ring: Ring) -> Tensor:
    """[B, H, L, D] of a stretch -> [B, H / ranks, row, D] of this rank's heads."""
    parts = x.unflatten(1, (ring.size, -1)).movedim(1, 0)  # a group of heads for each rank
    return _exchanged(parts, ring).movedim(0, 2).flatten(2, 3)


def _to_stretch(x: Tensor, ring: Ring) -> Tensor:
    """[B, H / ranks, row, D] of this rank's heads -> [B, H, L, D] of its stretch."""
    parts = x.unflatten(2, (ring.size, -1)).movedim(2, 0)  # a stretch for each rank
    return _exchanged(parts, ring).movedim(0, 1).flatten(1, 2)


def _exchanged(parts: Tensor, ring: Ring) -> Tensor:
    """Part r of [ranks, ...] goes to rank r; what each rank has for this one, in their order."""
    out = _Exchange.apply(parts, ring)
    assert isinstance(out, Tensor)
    return out


class _Exchange(torch.autograd.Function):
    """An all-to-all of equal parts, which is its own transpose."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, ring: Ring) -> Tensor:
        ctx.ring = ring
        return _all_to_all(parts, ring)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _all_to_all(grads[0], ctx.ring), None


def _all_to_all(parts: Tensor, ring: Ring) -> Tensor:
    given = parts.contiguous()
    coming = torch.empty_like(given)
    dist.all_to_all_single(coming, given, group=ring.group)
    return coming
