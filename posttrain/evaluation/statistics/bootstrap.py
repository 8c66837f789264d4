"""The hierarchical bootstrap: seeds and examples drawn anew, the same examples for every arm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from posttrain.evaluation.statistics.crossed import crossed, difference, mean
from posttrain.evaluation.statistics.estimate import Array, Estimate

Draws = np.random.Generator


def replicates(arms: tuple[Array, ...], *, weights: Array | None = None, rounds: int = 2000, seed: int = 0) -> Array:
    """Means of each arm in `rounds` bootstrap worlds, [arms, rounds]. arms: [S_a, N] each, on the same examples. weights: [N].

    Seeds are drawn for each arm, examples once for all (Owen, The pigeonhole bootstrap, Ann. Appl. Stat. 1 (2007) 386-411). Counts'
    deviations are enlarged by sqrt(n / (n - 1)), without which a bootstrap of n = 3 seeds shows two thirds of their variance.
    """
    draws = np.random.default_rng(seed)
    count = arms[0].shape[-1]
    share = _shares(draws, count, rounds) * (1.0 if weights is None else weights)
    share /= share.sum(-1, keepdims=True)
    # einsum, not a matrix product: its sums do not depend on how many threads there are.
    found = [np.einsum("rs,sr->r", _shares(draws, len(scores), rounds), np.einsum("sn,rn->sr", scores, share)) for scores in arms]
    return np.stack(found)


def _shares(draws: Draws, count: int, rounds: int) -> Array:
    """How much each of `count` units counts in each world, [rounds, count]; rows sum to 1."""
    drawn = draws.multinomial(count, np.full(count, 1 / count), rounds) / count
    return 1 / count + (drawn - 1 / count) * np.sqrt(count / max(count - 1, 1))


def bootstrap_mean(scores: Array, *, weights: Array | None = None, rounds: int = 2000, seed: int = 0) -> Estimate:
    """The mean of [S, N], its variance by the bootstrap, and the degrees of freedom of few seeds.

    Its variance has that of the rest in it twice more than the mean has, so that intervals are rather too wide than too narrow.
    """
    usual = mean(crossed(scores, weights))
    return replace(usual, variance=replicates((scores,), weights=weights, rounds=rounds, seed=seed)[0].var(ddof=1))


def bootstrap_difference(one: Array, other: Array, *, weights: Array | None = None, rounds: int = 2000, seed: int = 0) -> Estimate:
    """one - other, [S, N] and [S', N] on the same examples."""
    usual = difference(crossed(one, weights), crossed(other, weights))
    found = replicates((one, other), weights=weights, rounds=rounds, seed=seed)
    return replace(usual, variance=(found[0] - found[1]).var(ddof=1))
