"""Statistics by hand, against scipy, and at their limits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from posttrain.evaluation.statistics.bootstrap import bootstrap_difference, bootstrap_mean
from posttrain.evaluation.statistics.crossed import crossed, difference, mean
from posttrain.evaluation.statistics.estimate import Array, Estimate, of_two, satterthwaite, unbiased
from posttrain.evaluation.statistics.permutation import exchange, holm, sign_flip
from posttrain.evaluation.statistics.power import Noise, noise_of, power_with, seeds_needed
from posttrain.evaluation.statistics.scalars import cohen_d, hedges_g, paired, student, welch

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


def test_crossed_is_the_analysis_of_variance() -> None:
    scores = DRAWS.normal(size=(3, 4)) + 5 * DRAWS.normal(size=4)
    by_seed, by_example = scores.mean(1), scores.mean(0)
    rest = ((scores - by_seed[:, None] - by_example + scores.mean()) ** 2).sum() / 6
    seeds, examples = by_seed.var(ddof=1) / 3, by_example.var(ddof=1) / 4 - rest / 12
    found = mean(crossed(scores))
    assert float(found.variance) == pytest.approx(seeds + examples)
    assert float(found.value) == pytest.approx(scores.mean())
    assert float(found.df) == pytest.approx(float(of_two((np.array(seeds), 2), (np.array(examples), 3))))


def test_seeds_that_agree_by_luck_are_not_believed() -> None:
    scores = np.eye(20)[:2] + np.eye(20)[2:4]
    assert len(set(scores.mean(1))) == 1
    rest = scores.var() * 20 / 19
    assert float(crossed(scores).seed_term[0]) == pytest.approx(stats.chi2.ppf(0.05, 1) * rest / 40, rel=0.2)


def test_the_limits_are_students() -> None:
    seeds = np.repeat(DRAWS.normal(size=(3, 1)), 50, 1)
    found, by_seed = mean(crossed(seeds)), student(seeds[:, 0])
    assert tuple(map(float, found.interval())) == pytest.approx(tuple(map(float, by_seed.interval())), rel=1e-4)
    examples = np.repeat(DRAWS.normal(size=(1, 50)), 3, 0)
    assert float(mean(crossed(examples)).df) == pytest.approx(49, rel=1e-3)
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


def test_degrees_of_freedom_of_two_variances() -> None:
    few, many = np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.0, 1.0, 1.0, 0.0])
    found = of_two((few, 2), (many, 99))
    assert found[[0, 1, 3]] == pytest.approx([2, 99, 2], rel=5e-3)
    low, high = stats.t.ppf(0.975, [99, 2])
    assert stats.t.ppf(0.975, found[2]) == pytest.approx(low + (high - low) * 0.25 * 2 / 1.25, rel=1e-3)
    assert float(of_two((np.array(1.0), 40), (np.array(1.0), np.inf))) == pytest.approx(160, rel=0.05), "Welch's, where there are many"
    assert float(satterthwaite(np.array(2.0), [(np.array(1.0), 1), (np.array(1.0), 1)])) == 2
    assert [float(unbiased([(np.array(1.0), 1), (np.array(part), 1)])) for part in (1.0, 0.0)] == [2, 1]


@pytest.mark.parametrize(
    ("df", "least", "most"), [(1, 0.936, 0.969), (1.5, 0.944, 0.963), (2, 0.945, 0.959), (3, 0.946, 0.955), (8, 0.948, 0.952)]
)
def test_whatever_the_variances_are_the_interval_covers(df: float, least: float, most: float) -> None:
    """Integrated, not simulated: over what an estimate with few degrees of freedom may be, beside a variance that is known."""
    edges = np.concatenate([np.geomspace(1e-6, 0.01, 60), np.linspace(0.01, 0.99, 300)[1:], 1 - np.geomspace(0.01, 1e-6, 60)[1:]])
    drawn = stats.chi2.ppf((edges[1:] + edges[:-1]) / 2, df) / df
    truth = np.geomspace(0.01, 1000, 40)[:, None]
    seen: Array = truth * drawn
    reach = stats.t.ppf(0.975, of_two((seen, df), (np.ones_like(seen), np.inf))) * np.sqrt(seen + 1)
    covered = (2 * stats.norm.cdf(reach / np.sqrt(truth + 1)) - 1) @ np.diff(edges) / (edges[-1] - edges[0])
    assert least <= covered.min() <= covered.max() <= most


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
