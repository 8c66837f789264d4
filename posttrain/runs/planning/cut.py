"""Bytes of attention over a row that is cut over devices: kept for the backward pass, and on the way between the devices."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from posttrain.runs.planning.shapes import AttentionShape, Row

Kept = Callable[[AttentionShape, Row], float]  # bytes that attention over a row that is not cut keeps
FLOAT = 4


@dataclass(frozen=True)
class Cut:
    """One attention over cut rows. words: what it does. kept: by one call on one device, besides what the layer's own products keep of the
    output; from (shape, whole row, devices of the row, what attention over a whole row keeps). passing: from the first three.
    left: of one call, what the C library of a CPU keeps of copies that were let go between tensors that are kept; likewise."""

    words: str
    kept: Callable[[AttentionShape, Row, int, Kept], float]
    passing: Callable[[AttentionShape, Row, int], float]
    left: Callable[[AttentionShape, Row, int], float] = lambda *_: 0.0


def _queries(shape: AttentionShape, tokens: float) -> float:
    return tokens * shape.heads * shape.key_width


def _keys(shape: AttentionShape, tokens: float) -> float:
    """And values."""
    return tokens * shape.key_heads * (shape.key_width + shape.value_width)


def _local(shape: AttentionShape, row: Row, devices: int, keys: float) -> float:
    """Queries of a part of the row and some keys and values; the part's output, in the kernel's order, and its normalisers."""
    tokens = row.cut(devices).tokens
    return shape.element * (_queries(shape, tokens) + keys + tokens * shape.heads * shape.value_width) + FLOAT * tokens * shape.heads


def _ring_kept(shape: AttentionShape, row: Row, devices: int, _kept: Kept) -> float:
    return _local(shape, row, devices, _keys(shape, row.cut(devices).tokens))


def _ring_passing(shape: AttentionShape, row: Row, devices: int) -> float:
    """Backward: the keys and values that are here and those that come, float32 gradients of both, and of the queries."""
    tokens = row.cut(devices).tokens
    return 2 * (shape.element + FLOAT) * _keys(shape, tokens) + FLOAT * _queries(shape, tokens)


def _exchange(shape: AttentionShape, devices: int) -> AttentionShape:
    """A device's heads. Key heads that are no multiple of the devices are repeated until they are."""
    repeats = devices // math.gcd(shape.key_heads, devices)
    return replace(shape, heads=max(1, shape.heads // devices), key_heads=max(1, shape.key_heads * repeats // devices))


def _ulysses_kept(shape: AttentionShape, row: Row, devices: int, kept: Kept) -> float:
    """What attention over the whole row keeps, of a device's heads: the queries, keys and values that it got. Those that it gave for them,
    of all heads, are let go."""
    return kept(_exchange(shape, devices), row)


def _ulysses_passing(shape: AttentionShape, row: Row, devices: int) -> float:
    """An all-to-all holds what is sent, laid out by receiver, and what comes, by sender, and that is laid out by head: of queries or of the
    output, whose size is the larger."""
    mine = _exchange(shape, devices)
    return 2.0 * shape.element * row.tokens * mine.heads * max(shape.key_width, shape.value_width)


def _ulysses_left(shape: AttentionShape, row: Row, devices: int) -> float:
    """What is sent and what comes, of queries, keys, values and output."""
    mine = _exchange(shape, devices)
    return 2 * shape.element * (_queries(mine, row.tokens) + _keys(mine, row.tokens) + row.tokens * mine.heads * mine.value_width)


def _gathered_kept(shape: AttentionShape, row: Row, devices: int, _kept: Kept) -> float:
    """The kernel keeps the keys and values of the whole row."""
    return _local(shape, row, devices, _keys(shape, row.tokens))


def _gathered_passing(shape: AttentionShape, row: Row, devices: int) -> float:
    """Backward: the gradients of the whole row's keys and values before each device gets the sum of its part."""
    return shape.element * (_keys(shape, row.tokens) + _keys(shape, row.cut(devices).tokens))


CUTS = {
    "ring": Cut("keys and values travel round them", _ring_kept, _ring_passing),
    "ulysses": Cut("they exchange stretches for heads", _ulysses_kept, _ulysses_passing, _ulysses_left),
    "torch": Cut("each gathers the keys and values of all", _gathered_kept, _gathered_passing),
}
