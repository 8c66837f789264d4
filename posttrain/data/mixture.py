"""The order of examples within an epoch: a seeded permutation, or a mixture of sources in fixed shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def epoch_order(
    sizes: Sequence[int], weights: Sequence[float] | np.ndarray | None = None, *, exhaustion: str = "stop", seed: int = 0, epoch: int = 0
) -> np.ndarray:
    """Example indices of one epoch, int64; a pure function of its arguments. Every epoch has the same length.

    sizes: examples of each source; the indices of a source follow those of the one before. weights: shares of the mixture.
    One source: each example once. Several: in every prefix each source's count is within two examples of its share.
    exhaustion=stop: the epoch ends when the first source would run out; the others go on with unseen examples in the next epoch.
    exhaustion=repeat: it ends when every source was seen once; the smaller ones start again.
    Raises ValueError for a source without examples.
    """
    if sum(sizes) == 0:
        return np.zeros(0, np.int64)
    counts = epoch_counts(sizes, weights, exhaustion).tolist()
    firsts = np.cumsum([0, *sizes])
    picked = [firsts[source] + _take(sizes[source], source, count, seed, epoch) for source, count in enumerate(counts)]
    random = _generator(seed, len(counts), epoch)
    # Item j of c lies at random within its c-th of the epoch: shares hold locally, and sources do not beat in step.
    places = np.concatenate([(np.arange(count) + random.random(count)) / count for count in counts])
    return np.concatenate(picked)[np.argsort(places, kind="stable")]


def epoch_counts(sizes: Sequence[int], weights: Sequence[float] | np.ndarray | None, exhaustion: str) -> np.ndarray:
    """int64 [sources]: examples that each source gives an epoch. Raises ValueError for a source without examples."""
    have = np.asarray(sizes, np.int64)
    if (have == 0).any():
        raise ValueError(f"source {int(np.argmin(have))} of the mixture has no examples")
    shares = np.asarray(have if weights is None else weights, np.float64)
    shares = shares / shares.sum()
    passes = have / shares
    total = passes.min() if exhaustion == "stop" else passes.max()
    counts = np.maximum(np.round(shares * total).astype(np.int64), 1)
    return np.minimum(counts, have) if exhaustion == "stop" else counts


def _take(size: int, source: int, count: int, seed: int, epoch: int) -> np.ndarray:
    """The epoch's stretch of the endless sequence of passes over a source; each pass is a new permutation."""
    start, pieces = epoch * count, []
    while count > 0:
        number, offset = divmod(start, size)
        pieces.append(_generator(seed, source, number).permutation(size)[offset : offset + count])
        start, count = start + len(pieces[-1]), count - len(pieces[-1])
    return np.concatenate(pieces)


def _generator(seed: int, stream: int, number: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, stream, number]))
