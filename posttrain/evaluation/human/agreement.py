"""How far raters agree beyond chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Agreement:
    """kappa with its 95 % interval (items drawn anew), NaN where chance alone would agree. observed: share of pairs that agree."""

    name: str
    kappa: float
    low: float
    high: float
    observed: float
    raters: int
    items: int


def cohen(labels: Array) -> float:
    """Cohen's kappa of two raters, labels [N, 2]: (p_o - p_e) / (1 - p_e), p_e from each one's own shares.

    Cohen, Educ. Psychol. Meas. 20 (1960) 37-46. NaN where p_e = 1.
    """
    names = np.unique(labels)
    shares = (labels[:, :, None] == names).mean(0)
    expected = float((shares[0] * shares[1]).sum())
    return _beyond(float((labels[:, 0] == labels[:, 1]).mean()), expected)


def fleiss(labels: Array) -> float:
    """Fleiss' kappa of R raters, labels [N, R]: p_e from the shares of all of them together.

    Fleiss, Psychol. Bull. 76 (1971) 378-382. NaN where p_e = 1.
    """
    counts = (labels[:, :, None] == np.unique(labels)).sum(1)
    return _beyond(_observed(labels), float(np.square(counts.sum(0) / counts.sum()).sum()))


def _observed(labels: Array) -> float:
    """Share of the pairs of raters that agree, over all items."""
    raters = labels.shape[1]
    counts = (labels[:, :, None] == np.unique(labels)).sum(1)
    return float((counts * (counts - 1)).sum(1).mean() / (raters * (raters - 1)))


def _beyond(observed: float, expected: float) -> float:
    return float("nan") if np.isclose(expected, 1) else (observed - expected) / (1 - expected)


def agreement(labels: Array, *, rounds: int = 1000, seed: int = 0) -> Agreement:
    """Cohen's kappa for two raters, Fleiss' for more; the interval is of the percentiles of a bootstrap over items."""
    name, kappa = ("Cohen's kappa", cohen) if labels.shape[1] == 2 else ("Fleiss' kappa", fleiss)
    draws = np.random.default_rng(seed)
    drawn = np.array([kappa(labels[draws.integers(0, len(labels), len(labels))]) for _ in range(rounds)])
    known = drawn[~np.isnan(drawn)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    return Agreement(name, kappa(labels), float(low), float(high), _observed(labels), labels.shape[1], len(labels))
