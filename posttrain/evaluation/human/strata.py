"""Which prompts are shown: a share of each stratum, by where they come from, else by how long they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LENGTHS = ("short", "medium", "long")


@dataclass(frozen=True)
class Strata:
    """by: source, length or nothing. of: the stratum of each prompt."""

    by: str
    of: tuple[str, ...]


def strata_of(sources: Sequence[str], prompts: Sequence[str]) -> Strata:
    """By source where there are several; else by thirds of the prompts' lengths in characters, where those differ."""
    if len(set(sources)) > 1:
        return Strata("source", tuple(sources))
    lengths = np.array([len(prompt) for prompt in prompts])
    low, high = np.quantile(lengths, [1 / 3, 2 / 3], method="inverted_cdf")
    names = tuple(LENGTHS[int(length > low) + int(length > high)] for length in lengths)
    return Strata("length", names) if len(set(names)) > 1 else Strata("nothing", ("all",) * len(prompts))


def sample(strata: Strata, count: int, draws: np.random.Generator) -> list[int]:
    """Places of `count` prompts, each stratum as often as its share (largest remainders), in random order."""
    names = sorted(set(strata.of))
    places = [np.flatnonzero(np.array(strata.of) == name) for name in names]
    chosen = [draws.permutation(found)[:some] for found, some in zip(places, shares([len(found) for found in places], count), strict=True)]
    return draws.permutation(np.concatenate(chosen)).tolist()


def shares(sizes: Sequence[int], count: int) -> list[int]:
    """`count` dealt out in proportion to `sizes`, the largest remainders first."""
    exact = np.array(sizes) * count / sum(sizes)
    dealt = np.floor(exact).astype(int)
    for place in np.argsort(dealt - exact, kind="stable")[: count - dealt.sum()]:
        dealt[place] += 1
    return [int(some) for some in dealt]
