"""Which keys the queries of one stretch of a row may see in another stretch, as small rectangles of scores.

A row is a token tree's; a stretch is a part of it from one place to another, whatever segments it cuts. The tokens that a query sees lie
along its path (its ancestors, then its own segment), where positions grow by one from token to token: a key is seen if its position is
not behind the query's, and not a window or more before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.models.attention.layout import Layout

BLOCK = 256  # queries of a tile
KEYS = 4  # as many keys, at most


@dataclass(frozen=True)
class Span:
    """Tokens of one segment: places start..end of the row, and the position of the first."""

    start: int
    end: int
    position: int

    @property
    def last(self) -> int:
        """Position of the last token."""
        return self.position + self.end - self.start - 1

    def part(self, start: int, end: int) -> Span:
        """What of it lies between two places of the row; empty (end <= start) where nothing does."""
        first = max(self.start, start)
        return Span(first, min(self.end, end), self.position + first - self.start)

    def seen(self, first: int, last: int, window: int | None) -> Span:
        """What of it lies at the position `last` or before, and less than a window before the position `first`; empty like a part."""
        earliest = self.position if window is None else first - window + 1
        return self.part(self.start + earliest - self.position, self.start + last - self.position + 1)

    @property
    def places(self) -> slice:
        """Of the row."""
        return slice(self.start, self.end)


@dataclass(frozen=True)
class Tile:
    """Queries of one segment, and keys that at least one of them sees, root first."""

    queries: Span
    keys: tuple[Span, ...]


def tiles_between(
    layout: Layout, queries: tuple[int, int], keys: tuple[int, int], *, window: int | None = None, block: int = BLOCK
) -> list[Tile]:
    """Tiles of the queries from one place of the row to another, with the keys between two others; none where nothing is seen.

    window: a query sees keys less than so many positions before it. block: most queries of a tile, which has at most KEYS as many keys.
    """
    segments = spans_of(layout.segments)
    tiles: list[Tile] = []
    for index, segment in enumerate(segments):
        asking = segment.part(*queries)
        chain = [segments[i] for i in (*layout.ancestors(index), index)] if asking.start < asking.end else []
        near = [part for part in (span.part(*keys) for span in chain) if part.start < part.end]
        if near:
            tiles += _cut(asking, near, window, block)
    return tiles


def _cut(asking: Span, near: Sequence[Span], window: int | None, block: int) -> Iterator[Tile]:
    """Tiles of one segment's queries."""
    for start in range(asking.start, asking.end, block):
        some = asking.part(start, start + block)
        seen = [span for span in (span.seen(some.position, some.last, window) for span in near) if span.start < span.end]
        yield from (Tile(some, keys) for keys in _shared_out(seen, KEYS * block))


def _shared_out(spans: Sequence[Span], most: int) -> list[tuple[Span, ...]]:
    """Spans together where they have at most so many tokens, else each in pieces."""
    if sum(span.end - span.start for span in spans) <= most:
        return [tuple(spans)] if spans else []
    return [(span.part(start, start + most),) for span in spans for start in range(span.start, span.end, most)]


def mask_of(tile: Tile, *, window: int | None, device: torch.device) -> Tensor | None:
    """Bool [queries, keys] of what a tile's queries see; None where every query sees every key."""
    queries, first, last = tile.queries, tile.keys[0].position, tile.keys[-1].last
    if last <= queries.position and (window is None or queries.last - first < window):
        return None
    asking = torch.arange(queries.position, queries.last + 1, device=device)[:, None]
    asked = torch.cat([torch.arange(span.position, span.last + 1, device=device) for span in tile.keys])[None]
    seen = asked <= asking
    return seen if window is None else seen & (asking - asked < window)


def spans_of(segments: Sequence[tuple[int, int, int]]) -> list[Span]:
    """Segments (start, end, parent) with the positions that they begin at: where their parents end."""
    spans: list[Span] = []
    for start, end, parent in segments:
        spans.append(Span(start, end, spans[parent].last + 1 if parent >= 0 else 0))
    return spans
