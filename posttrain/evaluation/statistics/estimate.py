"""A value that is known up to an error with a t distribution: its interval, and the tests that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

Array = np.ndarray


@dataclass(frozen=True)
class Estimate:
    """value, variance (of the value) and df (degrees of freedom of the variance), each [...]; a variance of NaN is one not known.

    share: the part of the variance that is known with `df` degrees of freedom, where the rest of it is known with `most`; see `quantile`.
    """

    value: Array
    variance: Array
    df: Array
    share: Array | float = 1.0
    most: Array | float = np.inf

    @property
    def se(self) -> Array:
        """Standard error."""
        return np.sqrt(self.variance)

    def quantile(self, tail: float) -> Array:
        """What |value - truth| / se exceeds with probability `tail`."""
        return quantile(tail, self.share, self.df, self.most)

    def interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """value -+ the quantile at that level times se."""
        reach = self.quantile(1 - level) * self.se
        return self.value - reach, self.value + reach

    def p(self, null: float = 0.0) -> Array:
        """Two-sided p-value of `value = null`: 1 less the level of the interval that just reaches it.

        Without any error: 1 where they are equal, 0 where not.
        """
        return beyond(_ratio(np.abs(self.value - null), self.se), self.share, self.df, self.most)

    def equivalence_p(self, margin: float) -> Array:
        """The larger p-value of two one-sided tests of value <= -margin and value >= margin: small where the value lies between them.

        Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987) 657-680. Raises ValueError unless margin > 0.
        """
        if not margin > 0:
            raise ValueError(f"the margin of equivalence must be positive, got {margin}")
        distance = _ratio(margin - np.abs(self.value), self.se)
        half = beyond(np.abs(distance), self.share, self.df, self.most) / 2
        return np.where(distance < 0, 1 - half, half)


ROUNDING = 1e-12  # relative: sums of equal numbers differ by less, and no spread that was measured is as small


def rounded(spread: Array, scale: Array) -> Array:
    """A spread [...] of values that are as large as `scale`, or their difference: 0 where it is of their rounding alone."""
    return np.where(np.abs(spread) <= ROUNDING * scale, 0.0, spread)


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


def unbiased(terms: Sequence[Term]) -> Array:
    """`satterthwaite` without its bias: (sum_k v_k)^2 / sum_k (v_k^2 / (df_k + 2)) - 2, at most K times the smallest df_k for K terms.

    An estimate's square is too large by (df_k + 2) / df_k on average, so that the usual form has too few degrees of freedom where terms
    are alike (Welch, Biometrika 34 (1947) 28-35). The true number is never above the sum of the df_k. Where every term is 0: the smallest.
    """
    whole = sum((value for value, _ in terms), np.zeros_like(terms[0][0]))
    below = sum((value**2 / (df + 2) for value, df in terms), np.zeros_like(whole))
    least = np.min([np.broadcast_to(df, whole.shape) for _, df in terms], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below == 0, least, np.clip(whole**2 / below - 2, least, len(terms) * least))


USUAL = 0.05  # two-sided
HALVINGS = 48


def quantile(tail: Array | float, share: Array | float, df: Array | float, most: Array | float = np.inf) -> Array:
    """What |value - truth| / se exceeds with probability `tail`, where a `share` c of the variance is known with few degrees of freedom,
    df = n, and the rest with `most`. [...]

    It goes from the quantile of t with `most` to that with `df` as c^2 (1 + k) / (c^2 + k) goes from 0 to 1. At 5 % k = n^2 / 4: for many
    degrees of freedom this is Welch's rule, t with n / c^2 of them. With few, Welch's interval is too short (one degree of freedom: 87 %
    coverage at worst), because it forgets the few where they come out small by chance; weighting the quantiles by the variances (Cochran &
    Cox, Experimental Designs, 1957, section 4.14) makes it too wide (98 %).

    Below 5 % k shrinks as (r(tail) / r(5 %))^max(3, n), r being the one quantile over the other: the smaller the tail, the more of it is
    made by variances that came out small, so that the few degrees of freedom must count also where their share looks small. Above, k
    stays. Whatever the variances are, the integral over what may be seen of the share exceeds the quantile at 5 % with probability 3.2 to
    6.3 % for one degree of freedom, 4.2 to 5.4 % for two, and at every tail with at most 1.25 times that tail (1.17 times from two on).
    Very small tails are rather too wide; no rule of this kind avoids that. Banerjee, Sankhya A 23 (1961) 359-378, whose squared interval
    weighs squared quantiles by the variances, never exceeds the tail, but is wider still.
    """
    low, high = stats.t.isf(np.asarray(tail) / 2, most), stats.t.isf(np.asarray(tail) / 2, df)
    usual = stats.t.isf(USUAL / 2, most) / stats.t.isf(USUAL / 2, df)
    with np.errstate(divide="ignore", invalid="ignore"):
        bend = np.square(df) / 4 * np.fmin(low / high / usual, 1.0) ** np.maximum(3.0, df)
    found: Array = low + (high - low) * np.square(share) * (1 + bend) / (np.square(share) + bend)
    return found


def beyond(distance: Array, share: Array | float, df: Array | float, most: Array | float = np.inf) -> Array:
    """The `tail` of which `distance` >= 0 is the `quantile`, by halving the logarithm of what t with `df` and t with `most` say."""
    above = 2 * stats.t.sf(distance, df)
    if np.all(np.equal(share, 1)):
        return np.asarray(above)
    smallest = np.finfo(float).tiny
    ends = np.broadcast_arrays(2 * stats.t.sf(distance, most), above, share)[:2]
    low, high = (np.log(np.maximum(end, smallest)) for end in ends)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        is_more = quantile(np.exp(middle), share, df, most) < distance
        low, high = np.where(is_more, low, middle), np.where(is_more, middle, high)
    return np.where(np.isnan(ends[1]), np.nan, np.where(ends[1] < smallest, 0.0, np.exp(high)))


def share_of(few: Array, many: Array) -> Array:
    """The part of the first variance in the sum of both; all of it where both are 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(few + many > 0, few / (few + many), 1.0)
