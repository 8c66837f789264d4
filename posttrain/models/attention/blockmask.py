"""FlexAttention's block mask of a token tree, made from its segments: no pair of tokens is looked at, so that it costs little for rows of
any length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from posttrain.functional.cuts import FLEX_BLOCK as BLOCK
from posttrain.models.attention.layout import Layout
from posttrain.models.attention.tiles import Span, spans_of

Blocks = Sequence[int]


def block_mask(
    layout: Layout, *, window: int | None, device: torch.device, queries: Blocks | None = None, keys: Blocks | None = None
) -> BlockMask:
    """Which keys a query sees: its segment's and ancestors', not after it, within the window.

    queries, keys: blocks of the row, in the order in which they lie in what attention is given; None: the row as it is. Those that are
    given are whole blocks. window: a query sees keys less than so many positions before it.
    """
    total = layout.segments[-1][1]
    every = range(-(-total // BLOCK))
    asking, asked = every if queries is None else queries, every if keys is None else keys
    some, whole = (torch.from_numpy(found[:, list(asked)])[None, None] for found in seen_blocks(layout, asking, window=window))
    partial, full = _listed(some, device), _listed(whole, device)
    lengths = (total if queries is None else BLOCK * len(asking), total if keys is None else BLOCK * len(asked))
    seen = _seen(layout, window, _places(asking, total).to(device), _places(asked, total).to(device))
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=BLOCK, mask_mod=seen, seq_lengths=lengths)


def seen_blocks(layout: Layout, queries: Blocks, *, window: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Bool [queries, blocks of the row]: where some query sees some key but not every one every key; where every one sees every key."""
    count = -(-layout.segments[-1][1] // BLOCK)
    some, pairs = np.zeros((len(queries), count), bool), np.zeros((len(queries), count), np.int32)
    spans, row_of = spans_of(layout.segments), {number: row for row, number in enumerate(queries)}
    for index, span in enumerate(spans):
        chain = [spans[i] for i in (*layout.ancestors(index), index)]
        for number in range(span.start // BLOCK, (span.end - 1) // BLOCK + 1):
            if (row := row_of.get(number)) is not None:
                asking = span.part(number * BLOCK, (number + 1) * BLOCK)
                for keys in chain:
                    some[row] |= _overlap(keys.seen(asking.position, asking.last, window), count) > 0
                    pairs[row] += (asking.end - asking.start) * _overlap(keys.seen(asking.last, asking.position, window), count)
    whole = pairs == BLOCK * BLOCK
    return some & ~whole, whole


def _overlap(span: Span, count: int) -> np.ndarray:
    """Int [count], tokens of a span in each block of the row."""
    first = BLOCK * np.arange(count)
    return np.clip(np.minimum(span.end, first + BLOCK) - np.maximum(span.start, first), 0, None)


def _listed(blocks: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Bool [1, 1, Q, K] as FlexAttention has it: the number of blocks of each row, and their indices before all others.

    The kernel takes indices as they lie in memory, whatever their strides say, and sorting keeps strides.
    """
    order = torch.argsort(blocks.to(torch.int8), dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32).to(device), order.to(device, torch.int32).contiguous()


def _places(blocks: Blocks, total: int) -> Tensor:
    """Places in the row of the tokens of some blocks."""
    return torch.cat([torch.arange(number * BLOCK, min((number + 1) * BLOCK, total)) for number in blocks])


def _seen(layout: Layout, window: int | None, queries: Tensor, keys: Tensor) -> Callable[..., Tensor]:
    """The mask by token. queries, keys: places in the row of what attention is given.

    Layers with a window and without have the same code, so that one compiled kernel serves both.
    """
    spans, device = spans_of(layout.segments), queries.device
    lengths = torch.tensor([span.end - span.start for span in spans])
    segment = torch.repeat_interleave(torch.arange(len(spans)), lengths).to(device)
    position = torch.cat([torch.arange(span.position, span.last + 1) for span in spans]).to(device)
    kin = torch.eye(len(spans), dtype=torch.bool)
    for index in range(len(spans)):
        kin[index, layout.ancestors(index)] = True
    kin, of_query, of_key, asking, asked = kin.to(device), segment[queries], segment[keys], position[queries], position[keys]
    left = torch.full_like(asking, -1) if window is None else asking - window  # the latest position that a query no longer sees

    def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return kin[of_query[query], of_key[key]] & (asked[key] <= asking[query]) & (asked[key] > left[query])

    return seen
