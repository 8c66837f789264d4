"""Bytes that attention keeps for the backward pass, by backend: what each of our kernels saves."""

from __future__ import annotations

from posttrain.functional.attended import attended
from posttrain.models.attention.blocked import LONGEST
from posttrain.runs.planning.shapes import AttentionShape, Row


def backend_of(asked: str, accelerator: str, row: Row, shape: AttentionShape, *, half: bool) -> str:
    """Which kernel computes a row: as `posttrain.models.attention.backends.pick_backend` and `segments.attention` choose."""
    if accelerator == "cuda" and asked != "sdpa":
        fits = not row.shared and not shape.explicit and half and shape.key_width <= 256 and asked != "flex"
        return "varlen" if fits else "flex"
    if shape.explicit:
        return "explicit"
    windowed = shape.window is not None and shape.window < row.longest_path
    return "sdpa" if half or accelerator == "cuda" or row.longest_path > LONGEST or windowed else "blocked"


def kept(shape: AttentionShape, row: Row, backend: str) -> float:
    """Bytes kept for the backward pass of one call, beside what the layer's own products keep of its output."""
    tokens, element = row.tokens, shape.element
    queries = tokens * shape.heads * shape.key_width
    keys = tokens * shape.key_heads * (shape.key_width + shape.value_width)
    out = tokens * shape.heads * shape.value_width
    return float(element * (queries + keys) + EXTRA[backend](shape, row, out * element))


def _blocked(shape: AttentionShape, row: Row, _out: int) -> int:
    """The probabilities of every block of queries."""
    return int(shape.element * shape.heads * sum(attended(length, before) for length, before in row.segments))


def _sdpa(shape: AttentionShape, row: Row, out: int) -> int:
    """Each segment's output, its normalisers, its path's keys and values where it has ancestors, and its mask where it needs one."""
    paths = sum(length + before for length, before in row.segments if before)
    copies = shape.key_heads * (shape.key_width + shape.value_width) * paths
    masks = sum(length * (length + before) for length, before in row.segments if before or _cut(shape, length))
    return out + 4 * row.tokens * shape.heads + shape.element * (copies + masks)


def _cut(shape: AttentionShape, length: int) -> bool:
    """Whether the window is shorter than a segment."""
    return shape.window is not None and shape.window < length


def _flash(shape: AttentionShape, row: Row, out: int) -> int:
    """The output once more, in the kernel's order, and its normalisers."""
    return out + 4 * row.tokens * shape.heads


def _varlen(shape: AttentionShape, row: Row, _out: int) -> int:
    return 4 * row.tokens * shape.heads


def _explicit(shape: AttentionShape, row: Row, _out: int) -> int:
    """Scores, soft-capped scores and probabilities of every segment, and keys and values for every query head."""
    pairs = sum(length * (length + before) for length, before in row.segments)
    paths = sum(length + before for length, before in row.segments)
    return (2 * shape.element + 4) * shape.heads * pairs + shape.element * shape.heads * (shape.key_width + shape.value_width) * paths


EXTRA = {"blocked": _blocked, "sdpa": _sdpa, "flex": _flash, "varlen": _varlen, "explicit": _explicit}
