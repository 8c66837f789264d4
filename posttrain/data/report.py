"""What data preparation did: rows, losses with their reasons, tokens, and where the result lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SourceReport:
    """One source.

    origin: where it was read from. part: train or val. digest: of its contents. format: its name. rows: read. kept: rows that gave
    examples. bad: rows that could not be used (on_error=skip). dropped, filtered: rows by reason. examples, tokens, trained: of what is
    kept. truncated: examples that were cut. guarded: rows with special tokens in their texts, where they are text. losses: (file:row,
    reason) of the first lost rows. cached: found in the cache. folder: where it lies.
    """

    name: str
    origin: str
    part: str
    digest: str
    format: str
    rows: int
    kept: int
    bad: int
    dropped: Mapping[str, int]
    filtered: Mapping[str, int]
    examples: int
    tokens: int
    trained: int
    truncated: int
    guarded: int
    losses: tuple[tuple[str, str], ...]
    cached: bool = field(compare=False, default=False)
    folder: str = field(compare=False, default="")

    @property
    def lost(self) -> int:
        """Rows that gave no example, for whatever reason."""
        return self.bad + sum(self.dropped.values()) + sum(self.filtered.values())


@dataclass(frozen=True)
class DataReport:
    """The whole preparation. fingerprint: of all that decided the tokens. notes: what the user should know, one line each."""

    sources: tuple[SourceReport, ...]
    fingerprint: str
    notes: tuple[str, ...]
    train_examples: int
    val_examples: int

    @property
    def cache_hit(self) -> bool:
        """Whether nothing had to be tokenized."""
        return all(source.cached for source in self.sources)

    def totals(self) -> dict[str, Any]:
        """Sums over the sources."""
        names = ("rows", "kept", "bad", "examples", "tokens", "trained", "truncated", "lost")
        return {name: sum(getattr(source, name) for source in self.sources) for name in names}

    @property
    def truncated_share(self) -> float:
        """Share of the examples that were cut to max_length."""
        totals = self.totals()
        return float(totals["truncated"] / totals["examples"]) if totals["examples"] else 0.0
