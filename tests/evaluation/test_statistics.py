"""Statistics by hand, against scipy, and at their limits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from posttrain.evaluation.statistics.bootstrap import bootstrap_difference, bootstrap_mean
from posttrain.evaluation.statistics.crossed import crossed, difference, mean
from posttrain.evaluation.statistics.estimate import Array, Estimate, beyond, quantile, satterthwaite, share_of, unbiased
from posttrain.evaluation.statistics.permutation import exchange, holm, sign_flip
from posttrain.evaluation.statistics.power import Noise, noise_of, power_with, seeds_needed
from posttrain.evaluation.statistics.scalars import cohen_d, hedges_g, paired, student, welch
from posttrain.evaluation.statistics.shares import interval_of_share

DRAWS = np.random.default_rng(7)
ONE, OTHER = np.array([1.0, 2.0, 4.0, 3.0]), np.array([2.5, 5.0, 4.5])


def test_t_tests_are_those_of_scipy() -> None:
    found, theirs = welch(ONE, OTHER), stats.ttest_ind(ONE, OTHER, equal_var=False)
    assert float(found.p()) == pytest.approx(theirs.pvalue)
    assert tuple(map(float, found.interval())) == pytest.approx(tuple(theirs.confidence_interval()))
    assert float(paired(ONE[:3], OTHER).p()) == pytest.approx(stats.ttest_rel(ONE[:3], OTHER).pvalue)
    assert float(student(ONE).p(2.0)) == pytest.approx(stats.ttest_1samp(ONE, 2.0).pvalue)


def test_a_single_value_has_no_error() -> None:
    assert np.isnan(welch(ONE, OTHER[:1]).p())
    assert np.isnan(student(ONE[:1]).interval()[0])


def test_two_one_sided_tests() -> None:
    found = Estimate(np.array(0.1), np.array(0.04), np.array(8.0))
    assert float(found.equivalence_p(0.5)) == pytest.approx(stats.t.sf((0.5 - 0.1) / 0.2, 8))
    assert float(found.equivalence_p(0.05)) > 0.5
    _, high = found.interval(0.9)
    assert float(found.equivalence_p(float(high))) == pytest.approx(0.05), "equivalent at 5 % is a 90 % interval within the margin"
    with pytest.raises(ValueError, match="positive"):
        found.equivalence_p(0.0)


def test_without_any_error() -> None:
    same = crossed(np.ones((3, 5)))
    assert float(mean(same).se) == 0
    assert float(difference(same, same).p()) == 1
    assert float(difference(same, crossed(np.zeros((2, 5)))).p()) == 0
    assert float(difference(same, same).equivalence_p(0.01)) == 0


def test_a_share_s_interval_by_hand() -> None:
    found = Estimate(np.array([0.8, 0.2, 0.5, 1.0, 0.5, 1.0]), np.array([0.01, 0.01, 1e-8, 0.0, 0.0, np.nan]), np.full(6, 1e9))
    low, high = interval_of_share(found, 20)
    reach = stats.norm.isf(0.025) * 0.1 / (2 * 0.16**1.5)
    ends = [(0.6 / 0.4 + sign * reach) for sign in (-1, 1)]
    assert (low[0], high[0]) == pytest.approx([0.5 + end / (2 * (end**2 + 4) ** 0.5) for end in ends])
    assert all((2 * end - 1) / (end * (1 - end)) ** 0.5 == pytest.approx(value) for end, value in zip((low[0], high[0]), ends, strict=True))
    assert (low[1], high[1]) == pytest.approx((1 - high[0], 1 - low[0])), "wrong answers are the mirror of right ones"
    assert 0 < low[0] < 0.8 - 0.196 < 0.8 < high[0] < 0.8 + 0.196, "farther towards 1/2"
    assert (low[2], high[2]) == pytest.approx((0.5 - 1.96e-4, 0.5 + 1.96e-4), rel=1e-4), "as usual where it is short"
    assert (low[3], high[3]) == pytest.approx((0.025 ** (1 / 20), 1.0)), "all alike: Clopper and Pearson"
    assert (low[4], high[4]) == pytest.approx((0.025 ** (1 / 20) - 0.5, 1.5 - 0.025 ** (1 / 20)))
    assert np.isnan([low[5], high[5]]).all()
    few = Estimate(np.array([0.8]), np.array([1e-4]), np.array([1.0]))  # two seeds: stretched as at the normal quantile
    as_normal = interval_of_share(Estimate(few.value, few.variance, np.array([1e9])), 20)
    stretch = stats.t.isf(0.025, 1) / stats.norm.isf(0.025)
    assert interval_of_share(few, 20)[0] == pytest.approx(0.8 - (0.8 - as_normal[0]) * stretch)
    assert interval_of_share(few, 20)[1] == pytest.approx(np.minimum(0.8 + (as_normal[1] - 0.8) * stretch, 1))
    assert np.isnan(interval_of_share(found, None)[0][3:5]).all(), "of runs alone nothing is known where they agree"


def test_rounding_is_no_spread() -> None:
    """Three times 0.1 has a variance of 1e-34 in floating point."""
    one, other = np.full((3, 40), 0.1), np.full((3, 40), 0.3)
    uneven = DRAWS.normal(size=(3, 40))
    for found in (
        student(one[:, 0]), welch(one[:, 0], other[:, 0]), paired(uneven[0], uneven[0] + 0.1), mean(crossed(one)),
        difference(crossed(one), crossed(other)), difference(crossed(uneven[:1]), crossed(uneven[:1] + 1e-3)),
    ):  # fmt: skip
        assert float(found.variance) == 0
    assert float(difference(crossed(one), crossed(one * 3 / 3)).value) == 0
    assert np.isinf(hedges_g(one[:, 0], other[:, 0]))
    assert float(mean(crossed(uneven * 1e-9)).variance) > 0, "small numbers may differ"


def test_crossed_is_the_analysis_of_variance() -> None:
    scores = DRAWS.normal(size=(3, 4)) + 5 * DRAWS.normal(size=4)
    by_seed, by_example = scores.mean(1), scores.mean(0)
    rest = ((scores - by_seed[:, None] - by_example + scores.mean()) ** 2).sum() / 6
    seeds, examples = by_seed.var(ddof=1) / 3, by_example.var(ddof=1) / 4 - rest / 12
    found = mean(crossed(scores))
    assert float(found.variance) == pytest.approx(seeds + examples)
    assert float(found.value) == pytest.approx(scores.mean())
    assert (float(found.df), float(found.most), float(found.share)) == (2, 3, pytest.approx(seeds / (seeds + examples)))


def test_seeds_that_agree_by_luck_are_not_believed() -> None:
    scores = np.eye(20)[:2] + np.eye(20)[2:4]
    assert len(set(scores.mean(1))) == 1
    rest = scores.var() * 20 / 19
    assert float(crossed(scores).seed_term[0]) == pytest.approx(stats.chi2.ppf(0.07, 1) * rest / 40, rel=0.2)


def test_the_limits_are_students() -> None:
    seeds = np.repeat(DRAWS.normal(size=(3, 1)), 50, 1)
    found, by_seed = mean(crossed(seeds)), student(seeds[:, 0])
    assert tuple(map(float, found.interval())) == pytest.approx(tuple(map(float, by_seed.interval())), rel=1e-4)
    examples = np.repeat(DRAWS.normal(size=(1, 50)), 3, 0)
    theirs = student(examples[0])
    assert tuple(map(float, mean(crossed(examples)).interval())) == pytest.approx(tuple(map(float, theirs.interval())))
    single, other = DRAWS.normal(size=(2, 1, 50))
    assert float(difference(crossed(single), crossed(other)).p()) == pytest.approx(stats.ttest_rel(single[0], other[0]).pvalue)


def test_weights_make_a_mean_over_tokens() -> None:
    scores, tokens = DRAWS.normal(size=(3, 6)), np.array([1.0, 2.0, 1.0, 4.0, 2.0, 2.0])
    found = crossed(scores, tokens)
    assert float(found.mean) == pytest.approx(np.average(scores.mean(0), weights=tokens))
    assert float(found.examples.mean()) == pytest.approx(0, abs=1e-12)
    alike = crossed(scores, np.full(6, 3.0))
    assert float(mean(alike).variance) == pytest.approx(float(mean(crossed(scores)).variance))
    with pytest.raises(ValueError, match="two examples"):
        crossed(scores[:, :1])


def test_quantiles_of_two_variances() -> None:
    assert [float(quantile(0.05, share, 2, 99)) for share in (1.0, 0.0)] == pytest.approx(stats.t.isf(0.025, [2, 99]))
    low, high = stats.t.isf(0.025, [99, 2])
    assert float(quantile(0.05, 0.5, 2, 99)) == pytest.approx(low + (high - low) * 0.25 * 2 / 1.25)
    assert float(quantile(0.05, 0.5, 40)) == pytest.approx(stats.t.isf(0.025, 160), rel=1e-3), "Welch's, where there are many"
    assert share_of(np.array([1.0, 0.0]), np.array([3.0, 0.0])) == pytest.approx([0.25, 1.0])
    assert float(satterthwaite(np.array(2.0), [(np.array(1.0), 1), (np.array(1.0), 1)])) == 2
    assert [float(unbiased([(np.array(1.0), 1), (np.array(part), 1)])) for part in (1.0, 0.0)] == [2, 1]


@pytest.mark.parametrize("df", [1.0, 1.6, 4.0])
def test_a_p_value_is_the_level_whose_interval_just_reaches(df: float) -> None:
    tails = np.geomspace(1e-12, 0.999, 60)
    assert (np.diff(quantile(tails, 0.4, df)) < 0).all(), "a smaller tail is farther out"
    assert beyond(quantile(tails, 0.4, df, 99), 0.4, df, 99) == pytest.approx(tails, rel=1e-9)
    found = Estimate(np.array(0.3), np.array(0.01), np.array(df), 0.4, 99)
    low, _ = found.interval(1 - float(found.p()))
    assert float(low) == pytest.approx(0, abs=1e-9)
    assert beyond(np.array([0.0, np.inf, np.nan]), 0.4, df) == pytest.approx([1, 0, np.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("df", "least", "most"), [(1, 0.936, 0.969), (1.5, 0.944, 0.963), (2, 0.945, 0.959), (3, 0.946, 0.955), (8, 0.948, 0.952)]
)
def test_whatever_the_variances_are_the_interval_covers(df: float, least: float, most: float) -> None:
    covered = 1 - missed(df, 0.05)
    assert least <= covered.min() <= covered.max() <= most


@pytest.mark.parametrize("df", [1, 1.5, 2, 3, 8])
@pytest.mark.parametrize("tail", [0.3, 0.1, 0.01, 0.005, 0.001, 1e-4])
def test_whatever_the_variances_are_small_p_values_are_seldom(df: float, tail: float) -> None:
    assert missed(df, tail).max() <= 1.18 * tail


def missed(df: float, tail: float) -> Array:
    """How often the quantile is exceeded, by how large the variance of few degrees of freedom is beside one that is known.

    Integrated, not simulated: over what the estimate may come out as.
    """
    edges = np.concatenate([np.geomspace(1e-10, 0.01, 200), np.linspace(0.01, 0.99, 300)[1:], 1 - np.geomspace(0.01, 1e-6, 60)[1:]])
    drawn = stats.chi2.ppf((edges[1:] + edges[:-1]) / 2, df) / df
    truth = np.geomspace(0.01, 1e6, 60)[:, None]
    seen: Array = truth * drawn
    reach = quantile(tail, share_of(seen, np.ones_like(seen)), df) * np.sqrt(seen + 1)
    found: Array = 2 * stats.norm.sf(reach / np.sqrt(truth + 1)) @ np.diff(edges) / (edges[-1] - edges[0])
    return found


def test_effect_sizes_by_hand() -> None:
    assert float(cohen_d(np.array([1.0, 3.0]), np.array([4.0, 6.0]))) == pytest.approx(-3 / 2**0.5)
    assert float(hedges_g(np.array([1.0, 3.0]), np.array([4.0, 6.0]))) == pytest.approx(-3 / 2**0.5 * 0.5641896)
    assert float(hedges_g(ONE, OTHER) / cohen_d(ONE, OTHER)) == pytest.approx(1 - 3 / (4 * 5 - 1), rel=0.01)
    assert np.isnan(hedges_g(ONE[:1], OTHER[:2]))


def test_permutations() -> None:
    assert sign_flip(np.array([1.0, 2.0, 3.0])) == 2 / 8
    assert sign_flip(np.array([1.0, 2.0, -3.0])) == 1.0
    assert sign_flip(np.zeros(4)) == 1.0
    many = DRAWS.normal(0.2, 1, 300)
    assert sign_flip(many) == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.01)
    assert sign_flip(many) == sign_flip(many)
    assert exchange(np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])) == pytest.approx(0.1)
    theirs = stats.permutation_test((ONE, OTHER), lambda a, b: abs(a.mean() - b.mean()), n_resamples=np.inf, alternative="greater")
    assert exchange(ONE, OTHER) == pytest.approx(theirs.pvalue)


def test_holm_by_hand() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, np.nan])) == pytest.approx([0.03, 0.06, 0.06, np.nan], nan_ok=True)
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1.0, 1.0])
    assert holm(np.array([])).shape == (0,)


def test_power_of_two_equal_arms() -> None:
    """Two samples of 17 with d = 1 are seen with 80 % (Cohen, 1988, table 2.4.1)."""
    assert seeds_needed(Noise(1.0, 1.0), 1.0) == 17
    assert power_with(Noise(1.0, 1.0), 1.0, 17) == pytest.approx(0.807, abs=0.005)
    assert power_with(Noise(1.0, 1.0), 0.0, 11) == pytest.approx(0.05, abs=0.005)
    assert power_with(Noise(0.0, 0.0), 1.0, 2) == 1.0
    assert seeds_needed(Noise(1.0, 1.0, 1.0, 99), 1.0) is None, "more seeds do not make up for few examples"
    assert seeds_needed(Noise(0.0, 0.0), 1.0) == 2


def test_the_bootstrap_agrees() -> None:
    scores, other = (DRAWS.normal(size=(5, 1)) * 0.1 + DRAWS.normal(size=(5, 200)) * 0.2 + DRAWS.normal(size=200) for _ in range(2))
    for found, usual in (
        (bootstrap_mean(scores), mean(crossed(scores))),
        (bootstrap_difference(scores, other), difference(crossed(scores), crossed(other))),
    ):
        assert float(found.se) == pytest.approx(float(usual.se), rel=0.1)
        assert float(found.value) == float(usual.value)
    noise = noise_of(crossed(scores), crossed(other))
    assert (noise.one + noise.other) / 5 + noise.examples == pytest.approx(float(difference(crossed(scores), crossed(other)).variance))
