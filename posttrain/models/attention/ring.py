"""Attention over a row that is cut over the ranks of a group: keys and values travel round the ring of ranks (arXiv:2310.01889).

Each rank holds the queries, keys and values of an equal stretch of the row, in the order of ranks. In as many hops as there are ranks it
meets the keys and values of every stretch, and adds what its queries take from them by the online softmax (arXiv:1805.02867, section 3);
the next ones are on their way while it computes. Backward, the gradients of keys and values travel with them, and one hop further, home.
No rank ever holds more than two stretches of keys and values, or scores beyond a tile's. A reference in plain tensor operations: it runs
on any device and backend that torch.distributed has point-to-point messages for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from posttrain.models.attention.layout import Layout, Scoring
from posttrain.models.attention.passing import Block, Ring
from posttrain.models.attention.tiles import Span, Tile, mask_of, tiles_between


def attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scoring: Scoring) -> Tensor:
    """This rank's part of the attention over a row that `layout` describes whole, cut over the ranks of `layout.ring`.

    q [B, H, L, D], k [B, G, L, D], v [B, G, L, E] of its stretch, H a multiple of G -> [B, H, L, E]. Every rank of the ring calls it, and
    goes backward through it, as often as the others. Raises ValueError where L is not the row's part, and for sinks and dropout.
    """
    ring = layout.ring
    if scoring.sinks is not None or scoring.dropout:
        raise ValueError("ring attention has neither sinks nor dropout")
    if q.shape[2] * ring.size != layout.segments[-1][1]:
        raise ValueError(f"{ring.size} stretches of {q.shape[2]} tokens are not a row of {layout.segments[-1][1]}")
    kind = q.device.type
    if torch.is_autocast_enabled(kind):
        q, k, v = (x.to(torch.get_autocast_dtype(kind)) for x in (q, k, v))
    with torch.autocast(kind, enabled=False):
        out = _RingAttention.apply(q, k, v, layout, scoring, ring)
    assert isinstance(out, Tensor)
    return out


@dataclass(frozen=True)
class _Row:
    """What both directions ask: who sees what, and how scores are made. length: of a stretch."""

    layout: Layout
    scoring: Scoring
    ring: Ring
    length: int

    def stretch(self, rank: int) -> tuple[int, int]:
        """Places of a rank's stretch in the row."""
        return rank * self.length, (rank + 1) * self.length

    def met(self, hop: int) -> list[Tile]:
        """Tiles of this rank's queries and the keys that are here in a hop, their places counted within the stretches."""
        window, mine, theirs = self.scoring.window, self.stretch(self.ring.rank), self.stretch(self.ring.owner(hop))
        key = ("ring", hop, window, self.ring.rank, self.ring.size)
        if key not in self.layout.cache:
            tiles = tiles_between(self.layout, mine, theirs, window=window)
            self.layout.cache[key] = [_within(tile, mine[0], theirs[0]) for tile in tiles]
        found: list[Tile] = self.layout.cache[key]
        return found

    def scores(self, queries: Tensor, keys: Tensor, tile: Tile) -> tuple[Tensor, Tensor | None]:
        """Scores [B, G, n, t, K] of a tile's queries [B, G, n, t, D] and keys [B, G, K, D], at least float32, -inf where nothing is seen;
        and the derivative of soft-capping, None without."""
        mask = mask_of(tile, window=self.scoring.window, device=queries.device)
        scores = (_flat(queries) @ keys.transpose(2, 3)).to(_wide(queries)).mul_(self.scoring.scale)
        scores, slope = scores.view(*queries.shape[:4], -1), None
        if (cap := self.scoring.softcap) is not None:
            bent = torch.tanh(scores / cap)
            scores, slope = bent * cap, 1 - bent.square()
        return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)), slope


class _Softmax:
    """Attention so far of queries [B, G, n, L, ...]: greatest score, sum of e^(s - top), sum of e^(s - top) v."""

    def __init__(self, queries: Tensor, width: int) -> None:
        wide = _wide(queries)
        shape = queries.shape[:4]
        self.top = queries.new_full(shape, torch.finfo(wide).min, dtype=wide)  # finite: e^(-inf - top) is 0 where nothing was seen yet
        self.mass = queries.new_zeros(shape, dtype=wide)
        self.total = queries.new_zeros((*shape, width), dtype=wide)

    def add(self, places: slice, scores: Tensor, values: Tensor) -> None:
        """Take in a tile's scores [B, G, n, t, K] of the queries at `places`, and values [B, G, K, E]."""
        before = self.top[..., places]
        top = torch.maximum(before, scores.amax(-1))
        grown, fall = (scores - top[..., None]).exp_(), (before - top).exp_()
        self.top[..., places] = top
        self.mass[..., places] = self.mass[..., places] * fall + grown.sum(-1)
        taken = (_flat(grown).to(values.dtype) @ values).view(*grown.shape[:4], -1)
        self.total[..., places, :] = self.total[..., places, :] * fall[..., None] + taken

    def result(self) -> tuple[Tensor, Tensor]:
        """Values taken [B, G, n, L, E], and the log-sum-exp of the scores [B, G, n, L]. Every query sees itself."""
        return self.total / self.mass[..., None], self.top + self.mass.log()


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scoring: Scoring, ring: Ring) -> Tensor:
        row = _Row(layout, scoring, ring, q.shape[2])
        queries = _grouped(q, k.shape[1])
        running = _Softmax(queries, v.shape[3])
        for hop, (keys, values) in _round(ring, k, v):
            for tile in row.met(hop):
                places = tile.queries.places
                scores, _ = row.scores(queries[..., places, :], _taken(keys, tile.keys), tile)
                running.add(places, scores, _taken(values, tile.keys))
        out, lse = running.result()
        out = out.to(v.dtype).view(*q.shape[:3], -1)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.row = row
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        row, ring, groups = ctx.row, ctx.row.ring, k.shape[1]
        wide = _wide(q)
        queries, upstream = _grouped(q, groups), _grouped(grads[0].to(v.dtype), groups)
        slack = (_grouped(grads[0], groups).to(wide) * _grouped(out, groups)).sum(-1)
        dq = queries.new_zeros(queries.shape, dtype=wide)
        home: Block = (k.new_zeros(k.shape, dtype=wide), v.new_zeros(v.shape, dtype=wide))
        for hop, (keys, values) in _round(ring, k, v):
            dk, dv = home
            for tile in row.met(hop):
                places = tile.queries.places
                some, d_out = queries[..., places, :], _flat(upstream[..., places, :])
                near_k, near_v = _taken(keys, tile.keys), _taken(values, tile.keys)
                scores, slope = row.scores(some, near_k, tile)
                probs = (scores - lse[..., places, None]).exp_()
                d_probs = (d_out @ near_v.transpose(2, 3)).to(wide).view_as(probs)
                d_scores = probs * (d_probs - slack[..., places, None]) * row.scoring.scale
                d = _flat(d_scores if slope is None else d_scores * slope).to(q.dtype)
                dq[..., places, :] += (d @ near_k).view_as(some)
                _give(dk, tile.keys, d.transpose(2, 3) @ _flat(some))
                _give(dv, tile.keys, _flat(probs).to(v.dtype).transpose(2, 3) @ d_out)
            home = ring.pass_on(home).wait() if ring.size > 1 else home
        dk, dv = home
        return dq.reshape(q.shape).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _round(ring: Ring, k: Tensor, v: Tensor) -> Iterator[tuple[int, Block]]:
    """(hop, keys and values that are here), beginning with this rank's own; the next ones come meanwhile."""
    here: Block = (k.detach().contiguous(), v.detach().contiguous())
    for hop in range(ring.size):
        passing = ring.pass_on(here) if hop + 1 < ring.size else None
        yield hop, here
        if passing is not None:
            here = passing.wait()


def _within(tile: Tile, queries: int, keys: int) -> Tile:
    """A tile with the places of its queries and keys counted from where their stretches begin."""
    moved = (_moved(span, keys) for span in tile.keys)
    return Tile(_moved(tile.queries, queries), tuple(moved))


def _moved(span: Span, origin: int) -> Span:
    return Span(span.start - origin, span.end - origin, span.position)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """[B, H, L, D] as [B, G, n, L, D]: n query heads share a key head."""
    return x.reshape(x.shape[0], groups, -1, *x.shape[2:])


def _flat(x: Tensor) -> Tensor:
    """[B, G, n, t, D] as [B, G, n t, D]."""
    return x.flatten(2, 3)


def _taken(x: Tensor, spans: tuple[Span, ...]) -> Tensor:
    """Keys or values [B, G, K, D] at some spans of a stretch."""
    parts = [x[:, :, span.places] for span in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _give(total: Tensor, spans: tuple[Span, ...], part: Tensor) -> None:
    """Add gradients [B, G, K, D] to a stretch's, at some spans."""
    pieces = part.split([span.end - span.start for span in spans], 2)
    for span, piece in zip(spans, pieces, strict=True):
        total[:, :, span.places] += piece
