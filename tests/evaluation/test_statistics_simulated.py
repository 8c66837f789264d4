"""A thousand simulated studies each: intervals cover the truth, equal arms are seldom called different, power is what is stated."""

from __future__ import annotations

import numpy as np
import pytest

from posttrain.evaluation.statistics.crossed import crossed, difference, mean
from posttrain.evaluation.statistics.estimate import Array, Estimate
from posttrain.evaluation.statistics.power import Noise, power, seeds_needed
from posttrain.evaluation.statistics.scalars import welch

STUDIES = 1000
# Seeds, examples, spread of seeds, whether answers are right or wrong. Seeds that decide nothing, something, and nearly all.
WORLDS = [
    (3, 200, 0.0, False), (3, 200, 0.03, False), (3, 200, 0.1, False), (3, 50, 0.3, False), (4, 200, 0.05, False), (5, 50, 0.1, False),
    (5, 200, 0.3, False), (3, 200, 0.1, True), (5, 200, 0.05, True),
]  # fmt: skip


def study(draws: np.random.Generator, seeds: int, examples: int, spread: float, shared: Array, gain: float = 0.0) -> Array:
    """Scores [STUDIES, S, N] of an arm whose true mean is `gain`. shared [STUDIES, 1, N]: how hard each example is, for all arms."""
    own = 0.1 * draws.standard_normal((STUDIES, 1, examples))
    return (
        gain + spread * draws.standard_normal((STUDIES, seeds, 1)) + shared + own + 0.3 * draws.standard_normal((STUDIES, seeds, examples))
    )


def arms(world: tuple[int, int, float, bool], gain: float = 0.0) -> tuple[Array, Array, float]:
    """Two arms and the true mean of the second; right or wrong answers are drawn with a probability around a half."""
    seeds, examples, spread, binary = world
    draws = np.random.default_rng([seeds, examples, int(1000 * spread), binary])
    shared = 0.3 * draws.standard_normal((STUDIES, 1, examples))
    if not binary:
        return study(draws, seeds, examples, spread, shared, gain), study(draws, seeds, examples, spread, shared), 0.0
    shape = (STUDIES, seeds, 1)
    chances = [0.5 + 0.5 * np.tanh(2 * shared + 2 * spread * draws.standard_normal(shape)) for _ in range(2)]
    one, other = ((draws.random((STUDIES, seeds, examples)) < chance).astype(float) for chance in chances)
    return one, other, 0.5


def covered(found: Estimate, truth: float) -> float:
    """Share of the 95 % intervals that hold the truth."""
    low, high = found.interval()
    return float(((low <= truth) & (truth <= high)).mean())


@pytest.mark.parametrize("world", WORLDS)
def test_intervals_cover(world: tuple[int, int, float, bool]) -> None:
    one, other, truth = arms(world)
    most = 0.97 if world[2] else 0.99  # where seeds decide nothing, few of them cannot tell so
    assert 0.93 <= covered(mean(crossed(other)), truth) <= most
    assert 0.93 <= covered(difference(crossed(one), crossed(other)), 0.0) <= most


def test_equal_arms_are_seldom_called_different() -> None:
    rates = np.array([(difference(*map(crossed, arms(world)[:2])).p() < 0.05).mean() for world in WORLDS])
    assert rates.mean() <= 0.05
    assert rates.max() <= 0.05 + 2.6 * (0.05 * 0.95 / STUDIES) ** 0.5, "beyond what chance does to a thousand studies"


def test_a_percentile_bootstrap_would_not_cover() -> None:
    """Why intervals are not percentiles: with three seeds that decide, resampling them covers three times in four."""
    draws = np.random.default_rng(0)
    seeds = draws.standard_normal((STUDIES, 3))
    means = seeds[:, draws.integers(0, 3, (1000, 3))].mean(-1)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    assert ((low <= 0) & (high >= 0)).mean() < 0.8


@pytest.mark.parametrize(("seeds", "spread"), [(4, 0.05), (5, 0.1)])
def test_a_known_difference_is_found_with_the_stated_power(seeds: int, spread: float) -> None:
    examples = 200
    noise = Noise(*[spread**2 + 0.3**2 / examples] * 2, 2 * 0.1**2 / examples, examples - 1.0)
    variance, df = noise.at(seeds)
    gain = 3 * variance**0.5
    one, other, _ = arms((seeds, examples, spread, False), gain)
    found = difference(crossed(one), crossed(other))
    assert float((found.p() < 0.05).mean()) == pytest.approx(float(power(gain, variance, df)), abs=0.05)


def test_the_seeds_asked_for_are_enough() -> None:
    count = seeds_needed(Noise(0.02**2, 0.02**2), 0.03)
    assert count == 9
    draws = np.random.default_rng(3)
    one, other = 0.03 + 0.02 * draws.standard_normal((4000, count)), 0.02 * draws.standard_normal((4000, count))
    assert float((welch(one, other).p() < 0.05).mean()) == pytest.approx(0.82, abs=0.03)
