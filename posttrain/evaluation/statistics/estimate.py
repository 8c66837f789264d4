"""A value that is known up to an error with a t distribution: its interval, and the tests that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

Array = np.ndarray


@dataclass(frozen=True)
class Estimate:
    """value, variance (of the value) and df (degrees of freedom of the variance), each [...]; a variance of NaN is one not known."""

    value: Array
    variance: Array
    df: Array

    @property
    def se(self) -> Array:
        """Standard error."""
        return np.sqrt(self.variance)

    def interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """value -+ t_{df, (1 + level) / 2} se."""
        reach = stats.t.ppf((1 + level) / 2, self.df) * self.se
        return self.value - reach, self.value + reach

    def p(self, null: float = 0.0) -> Array:
        """Two-sided p-value of `value = null`. Without any error: 1 where they are equal, 0 where not."""
        away = np.abs(self.value - null)
        return 2 * stats.t.sf(_ratio(away, self.se), self.df)

    def equivalence_p(self, margin: float) -> Array:
        """The larger p-value of two one-sided tests of value <= -margin and value >= margin: small where the value lies between them.

        Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987) 657-680. Raises ValueError unless margin > 0.
        """
        if not margin > 0:
            raise ValueError(f"the margin of equivalence must be positive, got {margin}")
        return stats.t.sf(_ratio(margin - np.abs(self.value), self.se), self.df)


def _ratio(distance: Array, se: Array) -> Array:
    """distance / se, where 0 / 0 is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(distance == 0, np.where(np.isnan(se), np.nan, 0.0), distance / se)


Term = tuple[Array, Array | float]


def satterthwaite(variance: Array, terms: Sequence[Term]) -> Array:
    """Degrees of freedom of a sum of variance terms: variance^2 / sum_k v_k^2 / df_k. terms: (v_k, df_k), also such as were subtracted.

    Satterthwaite, Biometrics Bulletin 2 (1946) 110-114. Where every term is 0: the smallest df_k.
    """
    below = sum((value**2 / df for value, df in terms), np.zeros_like(variance))
    least = np.min([np.broadcast_to(df, variance.shape) for _, df in terms], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below == 0, least, variance**2 / below)


GRID = np.geomspace(1, 1e7, 2000)


def cochran(terms: Sequence[Term]) -> Array:
    """Degrees of freedom whose 97.5 % quantile of t, squared, is the mean of the terms' squared quantiles, weighted by their variances.

    So that t^2 (v_1 + v_2) = t_1^2 v_1 + t_2^2 v_2: the squares of what each term alone would reach add up (Cochran & Cox, Experimental
    Designs, 1957, section 4.14, weight the quantiles themselves). Unlike Satterthwaite's, they do not grow where a term of few degrees of
    freedom happens to come out small. terms: (v_k, df_k); where every v_k is 0: the smallest df_k.
    """
    whole = sum((value for value, _ in terms), np.zeros_like(terms[0][0]))
    square = sum((value * np.square(stats.t.ppf(0.975, df)) for value, df in terms), np.zeros_like(whole))
    most = np.max([np.broadcast_to(stats.t.ppf(0.975, df), whole.shape) for _, df in terms], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = np.where(whole > 0, np.sqrt(square / whole), most)
    quantiles = stats.t.ppf(0.975, GRID)
    return np.exp(np.interp(wanted, quantiles[::-1], np.log(GRID)[::-1]))
