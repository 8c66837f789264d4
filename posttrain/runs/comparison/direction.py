"""Which way a metric is better, by its name."""

from __future__ import annotations

import re

LOWER = re.compile(
    r"(^|[/_])(loss|nll|perplexity|word_perplexity|byte_perplexity|bits_per_byte|error|ece|kl|wer|ter|unscored)$|^val/unscored/"
)


def lower_is_better(metric: str) -> bool:
    """By its name: losses, perplexities, errors, what could not be scored."""
    return LOWER.search(metric) is not None
