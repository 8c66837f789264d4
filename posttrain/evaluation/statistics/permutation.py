"""Tests without a distribution: what would differences be if labels meant nothing? And the correction for several tests."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np

from posttrain.evaluation.statistics.estimate import Array

EXACT = 20_000  # arrangements that are all gone through
CHUNK = 1 << 22  # numbers held at once
SLACK = 1e-12  # relative: sums in another order


def sign_flip(differences: Array, *, rounds: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of a mean difference of 0, [N], from flipping the sign of each paired difference (Fisher, 1935, section 21).

    All 2^N arrangements where they are few, else `rounds` random ones and the observed, (1 + exceeding) / (1 + rounds): Phipson & Smyth,
    Stat. Appl. Genet. Mol. Biol. 9 (2010) 39. Differences of 0 say nothing and are left out. 1 where none is left.
    """
    some = differences[differences != 0]
    if not len(some):
        return 1.0
    observed = abs(some.sum()) * (1 - SLACK)
    if 2 ** min(len(some), 60) <= EXACT:
        bits = np.arange(2 ** len(some))[:, None] >> np.arange(len(some)) & 1
        return float((np.abs((2 * bits - 1) @ some) >= observed).mean())
    draws = np.random.default_rng(seed)
    step = max(1, CHUNK // len(some))
    found = 0
    for start in range(0, rounds, step):
        signs = draws.integers(0, 2, (min(step, rounds - start), len(some)), dtype=np.int8) * 2 - 1
        found += int((np.abs(signs @ some) >= observed).sum())
    return (1 + found) / (1 + rounds)


def exchange(one: Array, other: Array, *, rounds: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of equal means of [S] and [S'], from dealing the values out anew (Pitman, J. R. Stat. Soc. Suppl. 4 (1937) 119).

    Exact where there are few ways. It cannot fall below 1 over their number: 3 against 3 seeds never come below 0.1.
    """
    pool = np.concatenate([one, other])
    first, whole = len(one), pool.sum()

    def apart(sums: Array) -> Array:
        return np.abs(sums / first - (whole - sums) / len(other))

    observed = float(apart(one.sum()[None])[0])
    if comb(len(pool), first) <= EXACT:
        ways = np.array(list(combinations(range(len(pool)), first)))
        return float((apart(pool[ways].sum(-1)) >= observed * (1 - SLACK)).mean())
    draws = np.random.default_rng(seed)
    dealt = np.stack([draws.permutation(pool)[:first].sum() for _ in range(rounds)])
    return (1 + int((apart(dealt) >= observed * (1 - SLACK)).sum())) / (1 + rounds)


def holm(p: Array) -> Array:
    """p-values [K] adjusted for K tests: max over i <= j of (K - i) p_(i), i from 0, at most 1 (Holm, Scand. J. Statist. 6 (1979) 65-70).

    NaN where a test could not be made; it then is not counted.
    """
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * p[order]) if len(order) else factors, 1.0)
    return adjusted
