"""Tests and effect sizes where a run is one number."""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln

from posttrain.evaluation.statistics.estimate import Array, Estimate, rounded, satterthwaite


def student(values: Array, scale: Array | None = None) -> Estimate:
    """The mean of [..., S] with S - 1 degrees of freedom. A single value has no error that is known.

    scale [...]: how large the numbers were that the values were computed from; None = as large as they are.
    """
    count = values.shape[-1]
    if count < 2:
        return Estimate(values.mean(-1), np.full(values.shape[:-1], np.nan), np.ones(values.shape[:-1]))
    spread = rounded(values.std(-1, ddof=1), _largest(values) if scale is None else scale)
    return Estimate(values.mean(-1), spread**2 / count, np.full(values.shape[:-1], float(count - 1)))


def _largest(*values: Array) -> Array:
    """How large the numbers are at most, [...]."""
    return np.asarray(np.max([np.abs(some).max(-1) for some in values], axis=0))


def welch(one: Array, other: Array) -> Estimate:
    """Difference of the means of [..., S] and [..., S'], whose variances may differ (Welch, Biometrika 34 (1947) 28-35)."""
    a, b = student(one), student(other)
    variance = a.variance + b.variance
    return Estimate(a.value - b.value, variance, satterthwaite(variance, [(a.variance, a.df), (b.variance, b.df)]))


def paired(one: Array, other: Array) -> Estimate:
    """Mean of the differences of [..., S] and [..., S], which belong together one by one (Student, Biometrika 6 (1908) 1-25)."""
    return student(one - other, _largest(one, other))


def cohen_d(one: Array, other: Array) -> Array:
    """(mean - mean') / s, s^2 = ((S - 1) s_1^2 + (S' - 1) s_2^2) / (S + S' - 2) (Cohen, Statistical Power Analysis, 1988, section 2.5).

    NaN where there are too few values, infinite where all of an arm are equal and the arms differ.
    """
    df = one.shape[-1] + other.shape[-1] - 2
    apart = one.mean(-1) - other.mean(-1)
    if df < 1:
        return np.full_like(apart, np.nan)
    squares = sum(np.square(values - values.mean(-1, keepdims=True)).sum(-1) for values in (one, other))
    scale = _largest(one, other)
    with np.errstate(divide="ignore", invalid="ignore"):
        return rounded(apart, scale) / rounded(np.sqrt(squares / df), scale)


def hedges_g(one: Array, other: Array) -> Array:
    """J(df) d, without the bias of d with few values: J = Gamma(df/2) / (sqrt(df/2) Gamma((df-1)/2)).

    Hedges, J. Educational Statistics 6 (1981) 107-128, eq. 6. NaN below two degrees of freedom.
    """
    df = one.shape[-1] + other.shape[-1] - 2
    if df < 2:
        return np.full(one.shape[:-1], np.nan)
    return cohen_d(one, other) * np.exp(gammaln(df / 2) - gammaln((df - 1) / 2) - np.log(df / 2) / 2)
