"""Simulated studies, of which the truth is known: `python tests/evaluation/simulated_studies.py [STUDIES]` prints what their intervals and
tests come to, a line a world. The tests beside this file assert it of fewer worlds."""

from __future__ import annotations

import sys
from dataclasses import astuple, dataclass
from itertools import combinations, product

import numpy as np

from posttrain.evaluation.statistics.crossed import Crossed, crossed, difference, mean
from posttrain.evaluation.statistics.estimate import Array
from posttrain.evaluation.statistics.power import noise_of, power_with
from posttrain.evaluation.statistics.shares import interval_of_share

REST, SHARED, OWN = 0.3, 0.3, 0.1  # spread of a score: from try to try, of examples in all arms alike, of examples in each arm


@dataclass(frozen=True)
class World:
    """seeds, examples: of each arm. spread: of seeds, in scores (of right or wrong answers: about that). binary: right or wrong.

    calm: how much less the seeds of the second arm vary. easy: how likely answers are right: half at 0, 95 % at 1.5, 98 % at 2; harder:
    how much less so those of the arms after the first.
    """

    seeds: int
    examples: int
    spread: float
    binary: bool = False
    calm: float = 1.0
    easy: float = 0.0
    harder: float = 0.0

    def arms(self, studies: int, *, gain: float = 0.0, number: int = 0, count: int = 2) -> list[Array]:
        """Scores [studies, S, N] of arms on the same examples; the true mean of the first is above the others' by `gain`, or not at all."""
        draws = np.random.default_rng([self.seeds, self.examples, int(1000 * self.spread), self.binary, int(10 * self.calm), number])
        shared = SHARED * draws.standard_normal((studies, 1, self.examples))
        first, *others = (self._arm(draws, shared, bool(place)) for place in range(count))
        return [first + gain, *others]

    def _arm(self, draws: np.random.Generator, shared: Array, later: bool) -> Array:
        studies, _, examples = shared.shape
        spread, easy = self._of(later)
        seed = spread * draws.standard_normal((studies, self.seeds, 1))
        if self.binary:
            return (draws.random((studies, self.seeds, examples)) < right(easy + 2 * shared + 2 * seed)).astype(float)
        own = OWN * draws.standard_normal((studies, 1, examples))
        rest: Array = seed + shared + own + REST * draws.standard_normal((studies, self.seeds, examples))
        return rest

    def _of(self, later: bool) -> tuple[float, float]:
        """Spread of seeds and ease, of the first arm or a later one."""
        return (self.spread * self.calm, self.easy - self.harder) if later else (self.spread, self.easy)

    def truth(self, *, later: bool = True) -> float:
        """The mean of a later arm, or of the first."""
        if not self.binary:
            return 0.0
        at, weights = np.polynomial.hermite_e.hermegauss(60)
        spread, easy = self._of(later)
        return float(weights @ right(easy + 2 * np.hypot(SHARED, spread) * at) / weights.sum())

    def covered(self, arm: Crossed) -> float:
        """Share of the intervals of such arms' means that hold the truth; of right or wrong answers by what they are."""
        found = mean(arm)
        return covered(interval_of_share(found, self.examples) if self.binary else found.interval(), self.truth())


def right(ease: Array) -> Array:
    """Probability of a right answer."""
    return 0.5 + 0.5 * np.tanh(ease)


@dataclass(frozen=True)
class Outcome:
    """Shares of studies: whose interval of a mean, or of a difference, holds the truth; that call two equal arms different, and any two of
    three, after Holm; power as it was stated by the studies on average, and as it was."""

    mean: float
    difference: float
    false: float
    holm: float
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
    return Outcome(
        world.covered(other), covered(apart.interval(), 0.0), float((apart.p() < 0.05).mean()), family(world, studies), stated, found
    )


def family(world: World, studies: int, count: int = 3) -> float:
    """Share of studies of `count` equal arms that call any two different, by Holm's smallest p-value: the smallest times the pairs."""
    arms = [crossed(scores) for scores in world.arms(studies, number=2, count=count)]
    found = [difference(one, other).p() for one, other in combinations(arms, 2)]
    return float((len(found) * np.min(found, axis=0) < 0.05).mean())


def below(world: World, studies: int, levels: tuple[float, ...]) -> list[float]:
    """How often two equal arms' p-value is below each level, over that level: 1 is right, less is careful."""
    p = difference(*map(crossed, world.arms(studies, number=3))).p()
    return [float((p < level).mean()) / level for level in levels]


def _findable(one: Crossed, other: Crossed, wanted: float) -> float:
    """The difference that equal arms' tests, moved by it, call one in `wanted` of the studies."""
    apart = difference(one, other)
    low, high = apart.interval()
    return float(np.quantile((high - low) / 2 - apart.value, wanted))


def _each(one: Crossed, other: Crossed, count: int) -> list[tuple[Crossed, Crossed]]:
    return [(_study(one, place), _study(other, place)) for place in range(count)]


def _study(arm: Crossed, place: int) -> Crossed:
    return Crossed(arm.mean[place], arm.seeds[place], arm.examples[place], arm.rest[place])


def covered(intervals: tuple[Array, Array], truth: float) -> float:
    """Share of the 95 % intervals that hold the truth."""
    low, high = intervals
    return float(((low <= truth) & (truth <= high)).mean())


WORLDS = [
    World(seeds, examples, spread, binary)
    for seeds, examples, spread, binary in product((2, 3, 4, 5), (50, 200, 500), (0.0, 0.02, 0.05, 0.1, 0.3), (False, True))
]
UNLIKE = [World(seeds, 200, spread, calm=0.2) for seeds, spread in product((2, 3, 4, 5), (0.05, 0.3))]
NEARLY = [
    World(seeds, examples, spread, True, easy=easy)
    for seeds, examples, spread, easy in product((2, 3, 5), (50, 200, 500), (0.0, 0.1, 0.3), (1.5, 2.0))
]
LOPSIDED = [
    World(seeds, 500, 0.3, True, calm, 2.0, harder)
    for seeds, (calm, harder) in product((2, 3, 5), ((1.0, 2.0), (1.0, 1.5), (1.0, 1.0), (0.33, 1.0), (0.07, 1.0)))
]
MANY = [World(seeds, examples, spread) for seeds, examples, spread in product((2, 3, 5), (200, 500), (0.0, 0.02, 0.05, 0.1))]
ARMS, LEVELS = (3, 6, 10), (0.05, 0.01, 0.005, 0.001)
COLUMNS = ("mean", "difference", "false", "holm")


def main(studies: int) -> None:
    """A line a world, and the extremes."""
    print(f"seeds examples spread binary calm easy harder | {' '.join(COLUMNS)} | power stated, found")
    rows = []
    for world in [*WORLDS, *UNLIKE, *NEARLY]:
        rows.append((world, found := outcome(world, studies)))
        values = " ".join(f"{getattr(found, name):.3f}" for name in COLUMNS)
        print(*astuple(world), f"| {values} | {found.stated:.2f} {found.found:.2f}", flush=True)
    for seeds in (2, 3, 4, 5):
        some = [found for world, found in rows if world.seeds == seeds]
        for name in COLUMNS:
            values = np.array([getattr(found, name) for found in some])
            inside = f"in 93-97 %: {np.mean((values >= 0.93) & (values <= 0.97)):.0%}" if name in COLUMNS[:2] else ""
            print(f"{seeds} seeds, {name}: {values.min():.3f} to {values.max():.3f}, mean {values.mean():.3f} {inside}")
        apart = np.array([found.stated - found.found for found in some])
        print(f"{seeds} seeds, power: stated less found {apart.min():+.2f} to {apart.max():+.2f}, mean {apart.mean():+.2f}")
    print("seeds examples spread binary calm easy harder | difference, where the first arm is nearly always right and the second is not")
    for world in LOPSIDED:
        apart = difference(*map(crossed, world.arms(2 * studies)))
        print(*astuple(world), f"| {covered(apart.interval(), world.truth(later=False) - world.truth()):.3f}", flush=True)
    print(f"seeds examples spread | any two of {ARMS} equal arms called different | P(p < a) / a for a of {LEVELS}")
    for world in MANY:
        families = " ".join(f"{family(world, studies, count):.3f}" for count in ARMS)
        small = " ".join(f"{found:.2f}" for found in below(world, 30 * studies, LEVELS))
        print(world.seeds, world.examples, world.spread, f"| {families} | {small}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
