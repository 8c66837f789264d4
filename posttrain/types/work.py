"""What a step computed on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What was computed on, over all ranks: numbers of tokens, of targets and of (query, key) products of attention.

    examples: conversations, pairs or prompts. tokens: trained on, a group's prompt once; computed: the same with the prompt in each tree
    that a group is cut into. computed, targets, pairs: forward and backward; batches: the targets of each micro-batch.
    forward_tokens, forward_targets, forward_pairs: forward only (sampling, a reference between steps); bare_tokens: of these, those read
    with the adapters off. generated: tokens sampled. beside:
    operations of other models than the policy, such as reward models.
    """

    examples: int = 0
    tokens: int = 0
    computed: int = 0
    targets: float = 0.0
    pairs: float = 0.0
    batches: tuple[int, ...] = ()
    forward_tokens: float = 0.0
    forward_targets: float = 0.0
    forward_pairs: float = 0.0
    bare_tokens: float = 0.0
    generated: int = 0
    beside: float = 0.0
