"""Where nothing varies: every example scored the same, which is no proof that the next one would."""

from __future__ import annotations


def reach(examples: int, level: float = 0.95) -> float:
    """How far a mean in [0, 1] of that many equal scores may be from the truth: 1 - ((1 - level) / 2)^(1/N), about 3.7 / N.

    Clopper & Pearson, Biometrika 26 (1934) 404-413, at the ends; two-sided. Seeds that agree in everything are no further examples.
    """
    return float(1 - ((1 - level) / 2) ** (1 / examples))


def unseen(examples: int, share: float) -> float:
    """Probability that none of the examples differs where a `share` of all does: (1 - share)^N. The p-value of its being as large."""
    return float((1 - min(share, 1.0)) ** examples)
