"""Intervals of means of scores between 0 and 1: shares of right answers, win rates."""

from __future__ import annotations

import numpy as np

from posttrain.evaluation.statistics.alike import reach
from posttrain.evaluation.statistics.estimate import Array, Estimate


def interval_of_share(found: Estimate, examples: int | None, level: float = 0.95) -> tuple[Array, Array]:
    """The interval of a mean m, [...] each end: h(m) -+ quantile h'(m) se on the scale h(p) = (2p - 1) / sqrt(p (1 - p)), taken back.

    It lies within (0, 1), and reaches farther towards 1/2. Near 1 most seeds and examples show nothing of the few bad ones that pull the
    mean down, so that m comes out too high just where its error comes out too small: the studentised mean is skew. To second order a
    scale with h''/h' = -2 k3 / (3 s^4) takes that away, k3 being the third central moment of what is averaged and s^2 its variance (as
    in Hall, J. R. Statist. Soc. B 54 (1992) 221-228, whose moments are estimated: few seeds do not show them). With h' = (p (1 - p))^-g
    that is g = 2 for seeds whose logits are normal, 4/3 for seeds with a beta distribution, 2/3 for the answers of one model. 3/2 lies
    between, and has a closed form.

    Where nothing varies: what so many `examples` can still hide (`alike.reach`), NaN if they are None. NaN too where the variance is.
    """
    still = found.variance == 0
    inside = np.where(found.variance > 0, found.value, np.nan)
    spread = inside * (1 - inside)
    at = (2 * inside - 1) / np.sqrt(spread)
    far = found.quantile(1 - level) * found.se / (2 * spread**1.5)
    hidden = np.nan if examples is None else reach(examples, level)
    low = np.where(still, np.maximum(found.value - hidden, 0.0), _back(at - far))
    return low, np.where(still, np.minimum(found.value + hidden, 1.0), _back(at + far))


def _back(scaled: Array) -> Array:
    """p of h(p)."""
    found: Array = 0.5 + scaled / (2 * np.sqrt(np.square(scaled) + 4))
    return found
