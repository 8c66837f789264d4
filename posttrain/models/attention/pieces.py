"""A row's attention cut into pieces that are computed one after the other: blocks of a segment's queries, short ones of like size together.

A block of queries multiplies with the keys that it can see: its ancestors' and its segment's up to its own end. Many short blocks one by
one would spend most of their time on calls; together they are one product over their heads, filled up to the longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from posttrain.functional.attended import QUERY_BLOCK
from posttrain.models.attention.layout import Layout

SHORT = 1 << 13  # products of a query and a key in a block, at most, that is taken together with others
TOGETHER = 1 << 17  # in such a piece: scores of a head that stay in the cache
FILLED = 1.125  # what a piece computes, at most, over what is needed of it


class Piece(Protocol):
    """B products at once, each of S queries and K keys. x: [H, T, D]; pieces write every query once, and keys as often as they are seen."""

    def queries(self, x: Tensor) -> Tensor:
        """[B, S, D]."""

    def keys(self, x: Tensor) -> Tensor:
        """[B, K, D]."""

    def hide(self, scores: Tensor) -> None:
        """Sets scores [B, S, K] of what is not seen to -inf, in place."""

    def put(self, out: Tensor, found: Tensor) -> None:
        """Writes found [B, S, D] to out [T, H, D]."""

    def slopes(self, x: Tensor) -> Tensor:
        """As `queries`, 0 at those that are only there to fill up."""

    def add(self, total: Tensor, part: Tensor) -> None:
        """Adds part [B, K, D] to total [H, T, D]."""


@dataclass(frozen=True)
class Block:
    """Queries start .. end of a segment. chain: (start, end) of the stretches of keys that they see, root first."""

    start: int
    end: int
    chain: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Queries."""
        return self.end - self.start

    @property
    def seen(self) -> int:
        """Keys."""
        return sum(end - start for start, end in self.chain)

    def queries(self, x: Tensor) -> Tensor:
        """See Piece; B = H."""
        return x[:, self.start : self.end]

    def keys(self, x: Tensor) -> Tensor:
        """See Piece: a view where there are no ancestors."""
        parts = [x[:, start:end] for start, end in self.chain]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def hide(self, scores: Tensor) -> None:
        """See Piece."""
        scores[:, :, self.seen - self.size :].add_(_later(QUERY_BLOCK, scores.dtype)[: self.size, : self.size])

    def put(self, out: Tensor, found: Tensor) -> None:
        """See Piece."""
        out[self.start : self.end] = found.transpose(0, 1)

    def slopes(self, x: Tensor) -> Tensor:
        """See Piece."""
        return self.queries(x)

    def add(self, total: Tensor, part: Tensor) -> None:
        """See Piece."""
        place = 0
        for start, end in self.chain:
            total[:, start:end] += part[:, place : place + end - start]
            place += end - start


class Together:
    """Short blocks at once; B = H N for N blocks, filled up with their last queries and keys, S and K to the longest."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        count, size, seen = len(blocks), max(block.size for block in blocks), max(block.seen for block in blocks)
        places, near = torch.empty(count, size, dtype=torch.int64), torch.empty(count, seen, dtype=torch.int64)
        hidden = torch.zeros(count, size, seen, dtype=torch.bool)
        real = torch.zeros(count, size, dtype=torch.bool)
        for n, block in enumerate(blocks):
            places[n] = torch.arange(block.start, block.start + size).clamp_(max=block.end - 1)
            near[n, : block.seen] = torch.cat([torch.arange(start, end) for start, end in block.chain])
            near[n, block.seen :] = block.end - 1
            real[n, : block.size] = True
            reach = block.seen - block.size + torch.arange(size).clamp_(max=block.size - 1)
            hidden[n] = torch.arange(seen)[None] > reach[:, None]
        self.shape = count, size, seen
        self.places, self.near, self.hidden = places.flatten(), near.flatten(), hidden
        self.real = None if bool(real.all()) else real.flatten().nonzero()[:, 0]
        self.home = self.places if self.real is None else self.places[self.real]
        self.mask: Tensor | None = None

    def queries(self, x: Tensor) -> Tensor:
        """See Piece."""
        return self._rows(x.index_select(1, self.places), self.shape[1])

    def keys(self, x: Tensor) -> Tensor:
        """See Piece."""
        return self._rows(x.index_select(1, self.near), self.shape[2])

    def hide(self, scores: Tensor) -> None:
        """See Piece."""
        if self.mask is None or self.mask.dtype != scores.dtype:
            self.mask = torch.zeros(self.shape, dtype=scores.dtype).masked_fill_(self.hidden, -torch.inf)
        scores.view(-1, *self.shape).add_(self.mask)

    def put(self, out: Tensor, found: Tensor) -> None:
        """See Piece."""
        rows = self._line(found)
        rows = rows if self.real is None else rows.index_select(1, self.real)
        out.index_copy_(0, self.home, rows.transpose(0, 1))

    def slopes(self, x: Tensor) -> Tensor:
        """See Piece."""
        if self.real is None:
            return self.queries(x)
        rows = x.new_zeros(len(x), len(self.places), x.shape[2]).index_copy_(1, self.real, x.index_select(1, self.home))
        return self._rows(rows, self.shape[1])

    def add(self, total: Tensor, part: Tensor) -> None:
        """See Piece; what is filled up adds 0."""
        total.index_add_(1, self.near, self._line(part))

    def _rows(self, x: Tensor, each: int) -> Tensor:
        """[H, N * each, D] -> [H * N, each, D]."""
        return x.view(-1, each, x.shape[2])

    def _line(self, x: Tensor) -> Tensor:
        """[H * N, each, D] -> [H, N * each, D]."""
        return x.view(-1, self.shape[0] * x.shape[1], x.shape[2])


@cache
def _later(size: int, dtype: torch.dtype) -> Tensor:
    """[size, size]: -inf at keys that come after the query."""
    return torch.full((size, size), -torch.inf, dtype=dtype).triu_(1)


def pieces_of(layout: Layout) -> list[Piece]:
    """What a row's attention consists of; found once a micro-batch."""
    if "pieces" not in layout.cache:
        blocks = blocks_of(layout)
        short = [block for block in blocks if block.size * block.seen <= SHORT]
        groups = [group for group in alike(short) if len(group) > 1]
        together = {block for group in groups for block in group}
        layout.cache["pieces"] = [*(block for block in blocks if block not in together), *map(Together, groups)]
    found: list[Piece] = layout.cache["pieces"]
    return found


def blocks_of(layout: Layout) -> list[Block]:
    """Blocks of at most QUERY_BLOCK queries."""
    found = []
    for index, (begin, stop, _) in enumerate(layout.segments):
        before = tuple(layout.segments[i][:2] for i in layout.ancestors(index))
        for start in range(begin, stop, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, stop)
            found.append(Block(start, end, (*before, (begin, end))))
    return found


def alike(blocks: Sequence[Block]) -> list[list[Block]]:
    """Groups that can be computed together: within TOGETHER and FILLED."""
    groups: list[list[Block]] = []
    needed = size = seen = 0
    for block in sorted(blocks, key=lambda block: (-block.seen, -block.size, block.start)):
        more, wider, longer = needed + block.size * block.seen, max(size, block.size), max(seen, block.seen)
        computed = (len(groups[-1]) + 1) * wider * longer if groups else 0
        if groups and computed <= min(TOGETHER, FILLED * more):
            groups[-1].append(block)
            needed, size, seen = more, wider, longer
        else:
            groups.append([block])
            needed, size, seen = block.size * block.seen, block.size, block.seen
    return groups
