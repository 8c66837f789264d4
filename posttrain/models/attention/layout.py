"""The host-side shape of a token tree, from which the attention backends work."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from posttrain.models.attention.passing import ALONE, Ring
from posttrain.types import TokenTree


@dataclass(frozen=True, eq=False)
class Scoring:
    """How scores become weights: q k^T * scale, soft-capped, within a sliding window of tokens, beside sinks [H], with dropout."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0

    @property
    def plain(self) -> bool:
        """No soft-capping, no sinks, no dropout."""
        return self.softcap is None and self.sinks is None and not self.dropout


@dataclass(frozen=True, eq=False)
class Layout:
    """Segments of one row of T tokens.

    segments: (start, end, parent), parents before children, parent -1 for a root. positions: int64 [T] on the compute device; of the
    stretch that this rank computes where the row is cut over the ranks of a ring.
    backend: name of the attention backend. within: of the one that attends over the whole row where ranks exchange heads.
    cache: what a backend computes once a micro-batch and uses in every layer (masks).
    """

    segments: tuple[tuple[int, int, int], ...]
    positions: Tensor
    backend: str = "sdpa"
    cache: dict[Any, Any] = field(default_factory=dict)
    ring: Ring = ALONE
    within: str = "sdpa"

    @property
    def shared(self) -> bool:
        """Whether any segment has a parent."""
        return any(parent >= 0 for _, _, parent in self.segments)

    @cached_property
    def longest_path(self) -> int:
        """Tokens from a root to the end of the deepest segment."""
        ends: list[int] = []
        for start, end, parent in self.segments:
            ends.append(end - start + (ends[parent] if parent >= 0 else 0))
        return max(ends)

    def ancestors(self, index: int) -> list[int]:
        """Ancestors of a segment, root first."""
        chain: list[int] = []
        parent = self.segments[index][2]
        while parent >= 0:
            chain.append(parent)
            parent = self.segments[parent][2]
        return chain[::-1]


def layout_of(tree: TokenTree, backend: str, ring: Ring = ALONE, cut: str = "ring") -> Layout:
    """The layout of a micro-batch for one attention backend. ring: the ranks that the row is cut over. cut: the backend where it is."""
    segments = tuple((start, end, parent) for start, end, parent in tree.segments.tolist())
    return Layout(segments, tree.positions, backend if tree.stretch.size == 1 else cut, ring=ring, within=backend)
