"""What a step computed on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What was computed on, over all ranks: numbers of tokens, of targets and of (query, key) pairs of attention.

    examples: conversations, pairs or prompts. tokens, targets, pairs: forward and backward. forward_tokens, forward_targets, forward_pairs:
    forward only (a reference, sampling). generated: tokens sampled.
    """

    examples: int = 0
    tokens: int = 0
    targets: float = 0.0
    pairs: float = 0.0
    forward_tokens: float = 0.0
    forward_targets: float = 0.0
    forward_pairs: float = 0.0
    generated: int = 0
