"""Attention over a row that is cut over the ranks of a group, by PyTorch's own context parallelism with FlexAttention.

Each rank holds two pieces of the row, one from its front and one as far from its end. PyTorch gathers the keys and values of all ranks, and
brings their gradients back; a rank's queries meet them all in one kernel call, with a block mask that knows where in the row everything
lies. Its other way, a ring of plain attention calls, takes no mask (`_scaled_dot_product_ring_*` in torch 2.13) and so no rows of several
sequences. Its own `_create_cp_block_mask` is compiled anew for every length of a row, up to a limit that is an error: the mask is ours.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from posttrain.functional.cuts import FLEX_BLOCK, part_of, places_of
from posttrain.models.attention import flex
from posttrain.models.attention.blockmask import block_mask
from posttrain.models.attention.layout import Layout, Scoring
from posttrain.models.attention.passing import Ring


def attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scoring: Scoring) -> Tensor:
    """This rank's part of the attention over a row that `layout` describes whole, cut over the ranks of `layout.ring`.

    q [1, H, L, D], k [1, G, L, D], v [1, G, L, E] of its two pieces, H a multiple of G -> [1, H, L, E]. Every rank of the group calls it,
    and goes backward through it, as often as the others. Raises ValueError where L is not the row's part in whole blocks, and for sinks and
    dropout; NotImplementedError, as FlexAttention, for gradients on a CPU.
    """
    ring = layout.ring
    if scoring.sinks is not None or scoring.dropout:
        raise ValueError("attention over gathered keys has neither sinks nor dropout")
    if q.shape[2] * ring.size != layout.segments[-1][1]:
        raise ValueError(f"{ring.size} stretches of {q.shape[2]} tokens are not a row of {layout.segments[-1][1]}")
    key = ("gathered", scoring.window, q.device)
    if key not in layout.cache:
        layout.cache[key] = _mask(layout, scoring.window, q.device)
    kind = q.device.type
    if torch.is_autocast_enabled(kind):
        q, k, v = (x.to(torch.get_autocast_dtype(kind)) for x in (q, k, v))
    out = _gathering(ring, kind)(q, k, v, layout.cache[key], scoring)
    assert isinstance(out, Tensor)
    return out


def _mask(layout: Layout, window: int | None, device: torch.device) -> BlockMask:
    """Of this rank's queries and of the keys of all ranks, one rank's after the other's."""
    ring = layout.ring
    blocks = [_blocks(rank, ring.size, layout.segments[-1][1]) for rank in range(ring.size)]
    return block_mask(layout, window=window, device=device, queries=blocks[ring.rank], keys=[number for some in blocks for number in some])


def _blocks(rank: int, size: int, total: int) -> list[int]:
    """Blocks of the row that a rank holds, in their order there."""
    pieces = places_of(part_of("torch", rank, size), total)
    return [number for first, end in pieces for number in range(first // FLEX_BLOCK, end // FLEX_BLOCK)]


class _Attend(nn.Module):
    """What PyTorch puts the gathering before."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scoring: Scoring) -> Tensor:
        return flex.attend(q, k, v, mask, scoring)


@cache
def _gathering(ring: Ring, kind: str) -> nn.Module:
    """Attention of this rank's queries and everyone's keys and values; once a group."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.experimental._attention import _ContextParallel
    from torch.distributed.tensor.parallel import parallelize_module

    group: Any = dist.group.WORLD if ring.group is None else ring.group
    gathered = _ContextParallel(seq_dim=2, attention_type=_ContextParallel.AttentionType.FLEX)
    return parallelize_module(_Attend(), DeviceMesh.from_group(group, kind), gathered)
