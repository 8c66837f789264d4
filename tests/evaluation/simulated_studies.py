"""Simulated studies, of which the truth is known: `python tests/evaluation/simulated_studies.py [STUDIES]` prints what their intervals and
tests come to, a line a world. The tests beside this file assert it of fewer worlds."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import product

import numpy as np

from posttrain.evaluation.statistics.crossed import Crossed, crossed, difference, mean
from posttrain.evaluation.statistics.estimate import Array, Estimate
from posttrain.evaluation.statistics.power import noise_of, power_with

REST, SHARED, OWN = 0.3, 0.3, 0.1  # spread of a score: from try to try, of examples in all arms alike, of examples in each arm


@dataclass(frozen=True)
class World:
    """seeds, examples: of each arm. spread: of seeds, in scores (of right or wrong answers: about that). binary: right or wrong.

    calm: how much less the seeds of the second arm vary.
    """

    seeds: int
    examples: int
    spread: float
    binary: bool = False
    calm: float = 1.0

    def arms(self, studies: int, *, gain: float = 0.0, number: int = 0) -> tuple[Array, Array]:
        """Scores [studies, S, N] of two arms on the same examples, whose true means differ by `gain` (continuous) or not at all."""
        draws = np.random.default_rng([self.seeds, self.examples, int(1000 * self.spread), self.binary, int(10 * self.calm), number])
        shared = SHARED * draws.standard_normal((studies, 1, self.examples))
        one, other = (self._arm(draws, shared, spread) for spread in (self.spread, self.spread * self.calm))
        return one + gain, other

    def _arm(self, draws: np.random.Generator, shared: Array, spread: float) -> Array:
        studies, _, examples = shared.shape
        seed = spread * draws.standard_normal((studies, self.seeds, 1))
        if self.binary:
            chance = 0.5 + 0.5 * np.tanh(2 * shared + 2 * seed)
            return (draws.random((studies, self.seeds, examples)) < chance).astype(float)
        own = OWN * draws.standard_normal((studies, 1, examples))
        rest: Array = seed + shared + own + REST * draws.standard_normal((studies, self.seeds, examples))
        return rest

    @property
    def truth(self) -> float:
        """The mean of the second arm."""
        return 0.5 if self.binary else 0.0


@dataclass(frozen=True)
class Outcome:
    """Shares of studies: whose interval of a mean, or of a difference, holds the truth; that call equal arms different; power as it was
    stated by the studies on average, and as it was."""

    mean: float
    difference: float
    false: float
    stated: float
    found: float


def outcome(world: World, studies: int, *, wanted: float = 0.8) -> Outcome:
    """Of `studies` studies. The known difference is the one that is found about `wanted` of the time."""
    one, other = map(crossed, world.arms(studies))
    apart = difference(one, other)
    gain = _findable(one, other, wanted)
    first, second = map(crossed, world.arms(studies, gain=gain, number=1))
    found = float((difference(first, second).p() < 0.05).mean())
    stated = float(np.mean([power_with(noise_of(*pair), gain, world.seeds) for pair in _each(first, second, min(studies, 100))]))
    return Outcome(covered(mean(other), world.truth), covered(apart, 0.0), float((apart.p() < 0.05).mean()), stated, found)


def _findable(one: Crossed, other: Crossed, wanted: float) -> float:
    """The difference that equal arms' tests, moved by it, call one in `wanted` of the studies."""
    apart = difference(one, other)
    low, high = apart.interval()
    return float(np.quantile((high - low) / 2 - apart.value, wanted))


def _each(one: Crossed, other: Crossed, count: int) -> list[tuple[Crossed, Crossed]]:
    return [(_study(one, place), _study(other, place)) for place in range(count)]


def _study(arm: Crossed, place: int) -> Crossed:
    return Crossed(arm.mean[place], arm.seeds[place], arm.examples[place], arm.rest[place])


def covered(found: Estimate, truth: float) -> float:
    """Share of the 95 % intervals that hold the truth."""
    low, high = found.interval()
    return float(((low <= truth) & (truth <= high)).mean())


WORLDS = [
    World(seeds, examples, spread, binary)
    for seeds, examples, spread, binary in product((2, 3, 4, 5), (50, 200, 500), (0.0, 0.02, 0.05, 0.1, 0.3), (False, True))
]
UNLIKE = [World(seeds, 200, spread, calm=0.2) for seeds, spread in product((2, 3, 4, 5), (0.05, 0.3))]


def main(studies: int) -> None:
    """A line a world, and the extremes."""
    rows = []
    for world in [*WORLDS, *UNLIKE]:
        rows.append((world, found := outcome(world, studies)))
        print(
            f"{world}: mean {found.mean:.3f}  difference {found.difference:.3f}  false {found.false:.3f}  power stated {found.stated:.2f} found {found.found:.2f}"
        )
    for seeds in (2, 3, 4, 5):
        some = [found for world, found in rows if world.seeds == seeds]
        for name in ("mean", "difference", "false"):
            values = [getattr(found, name) for found in some]
            inside = np.mean([0.93 <= value <= 0.97 for value in values])
            print(f"{seeds} seeds, {name}: {min(values):.3f} to {max(values):.3f}, mean {np.mean(values):.3f}, in 93-97 %: {inside:.0%}")
        print(
            f"{seeds} seeds, power: stated less found {min(f.stated - f.found for f in some):+.2f} to {max(f.stated - f.found for f in some):+.2f}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
