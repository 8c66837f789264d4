"""What judgements say: by hand, and by simulated annotators whose preference is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from posttrain.evaluation.human.agreement import agreement, cohen, fleiss
from posttrain.evaluation.human.blind import balanced
from posttrain.evaluation.human.choice import strengths
from posttrain.evaluation.human.returned import Judgement
from posttrain.evaluation.human.summary import position, share, standings, summarise
from posttrain.runs.human_eval.report import verdicts

DRAWS = np.random.default_rng(0)


def orders_of(count: int, arms: int, seed: int = 0) -> np.ndarray:
    return np.array(balanced(count, arms, np.random.default_rng(seed)))


def simulate(
    count: int, truth: Sequence[float], *, first: float = 0.0, tie: float = -9.0, raters: int = 1, seed: int = 0
) -> list[Judgement]:
    """Annotators that choose by strengths, prefer what stands first by `first`, and rate around 3 + strength."""
    draws = np.random.default_rng(seed)
    arms, found = len(truth), []
    for rater in range(raters):
        for item, order in enumerate(balanced(count, arms, draws)):
            logits = np.array([truth[arm] + first * (order[0] == arm) for arm in range(arms)])
            noisy = np.append(logits, tie + logits.mean()) + draws.gumbel(size=arms + 1)
            chosen = int(noisy.argmax())
            ratings = tuple(int(np.clip(round(3 + value + draws.normal()), 1, 5)) for value in truth)
            stratum = "short" if item % 2 else "long"
            found.append(Judgement(f"q{item}", f"r{rater}", stratum, ratings, None if chosen == arms else chosen, order, ""))
    return found


def test_two_arms_without_ties_have_the_log_odds_of_their_wins() -> None:
    orders, chosen = orders_of(40, 2), np.array([0] * 30 + [1] * 10)
    for order in (0, 1):  # the same odds at both places, so that these have no effect
        chosen[np.flatnonzero(orders[:, 0] == order)] = [0] * 15 + [1] * 5
    fit = strengths(orders, chosen, np.arange(40), prior=0)
    assert fit.value[0] - fit.value[1] == pytest.approx(np.log(3), abs=1e-6)
    assert fit.preferred == pytest.approx([0.75, 0.25], abs=1e-6)
    apart = fit.covariance[0, 0] + fit.covariance[1, 1] - 2 * fit.covariance[0, 1]
    assert apart == pytest.approx((1 / 30 + 1 / 10) * 40 / 39, rel=1e-3)


def test_ties_are_davidsons() -> None:
    """wins 20, losses 5, ties 10: s = sqrt(20 / 5) on each side of the geometric mean; nu = ties / sqrt(wins losses) = 1."""
    half = np.array([0] * 10 + [1] * 5 + [2] * 5)
    orders = np.array([(0, 1)] * 20 + [(1, 0)] * 20)
    fit = strengths(orders, np.concatenate([half, half]), np.arange(40), prior=0)
    assert fit.value[0] - fit.value[1] == pytest.approx(np.log(2), abs=1e-6)
    assert fit.tie == pytest.approx(np.log(10 / np.sqrt(20 * 10)), abs=1e-6)


def test_the_place_does_not_pass_for_strength() -> None:
    """Equal arms, of which what stands first wins three times of four: the log-odds of 3 are the place's."""
    orders = np.array([(0, 1)] * 40 + [(1, 0)] * 40)
    chosen = np.array([0] * 30 + [1] * 10 + [1] * 30 + [0] * 10)
    fit = strengths(orders, chosen, np.arange(80), prior=0)
    assert fit.value == pytest.approx([0, 0], abs=1e-9)
    assert fit.places[0] - fit.places[1] == pytest.approx(np.log(3), abs=1e-6)


def test_an_arm_that_always_wins_stays_finite() -> None:
    fit = strengths(orders_of(30, 3), np.zeros(30, int), np.arange(30))
    assert np.isfinite(fit.value).all()
    assert fit.preferred[0] > 0.9


def test_kappa_by_hand() -> None:
    """Cohen's own kind of table: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o = 0.7, p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5, kappa = 0.4."""
    labels = np.array([(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15)
    assert cohen(labels) == pytest.approx(0.4)
    found = agreement(labels)
    assert (found.name, found.observed) == ("Cohen's kappa", pytest.approx(0.7))
    assert found.low < 0.4 < found.high


def test_fleiss_by_hand() -> None:
    """Three raters, four items: P = (1 + 1/3 + 1/3 + 1) / 4 = 2/3; shares 7/12 and 5/12, p_e = 74/144; kappa = (2/3 - 37/72) / (35/72)."""
    labels = np.array([(0, 0, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1)])
    labels[3] = (0, 0, 0)
    shares = np.array([(labels == value).sum() for value in (0, 1)]) / 12
    expected = float((shares**2).sum())
    assert fleiss(labels) == pytest.approx((2 / 3 - expected) / (1 - expected))
    assert fleiss(np.array([(0, 0, 0), (1, 1, 1)])) == pytest.approx(1)
    assert np.isnan(fleiss(np.zeros((4, 3))))


def test_wilson_by_hand_and_several_raters_are_no_more_items() -> None:
    found = share(np.array([1.0] * 8 + [0.0] * 2))
    assert (found.value, found.low, found.high) == (0.8, pytest.approx(0.475, abs=0.015), pytest.approx(0.943, abs=0.01))
    assert share(np.ones(10)).low == pytest.approx(1 / (1 + 1.96**2 / 10), abs=1e-3)


def test_intervals_cover_the_truth() -> None:
    truth = 1 / (1 + np.exp(-1.0))
    rate = strength = 0
    for seed in range(300):
        one = next(found for found in standings(simulate(60, (0.5, -0.5), seed=seed), ["a", "b"]) if found.arm == "a")
        rate += one.win_rate.low <= truth <= one.win_rate.high
        strength += one.strength.low <= 0.5 <= one.strength.high
    assert 0.92 * 300 <= rate <= 0.985 * 300
    assert 0.92 * 300 <= strength <= 0.985 * 300


def test_a_planted_preference_is_recovered() -> None:
    found = summarise(simulate(150, (-0.7, 0.9, -0.2), tie=-1.0, raters=3, seed=1), ["sft", "grpo", "dpo"], "length")
    assert [one.arm for one in found.standings] == ["grpo", "dpo", "sft"]
    planted = {"sft": -0.7, "grpo": 0.9, "dpo": -0.2}
    for one in found.standings:
        assert one.strength.value == pytest.approx(planted[one.arm], abs=0.25)
    assert [(duel.one, duel.other) for duel in found.duels if duel.holm < 0.05 and duel.one == "grpo"] == [("grpo", "sft"), ("grpo", "dpo")]
    assert found.agreement is not None
    assert (found.agreement.name, found.agreement.raters) == ("Fleiss' kappa", 3)
    assert [part.items for part in found.strata] == [75, 75]
    assert found.position.p > 0.05


def test_a_planted_bias_for_the_first_is_found_and_not_taken_for_quality() -> None:
    biased = simulate(300, (0.0, 0.0), first=1.2, seed=2)
    found = position(biased, 2)
    assert found.p < 1e-6
    assert found.first.low > 0.6
    one, _ = standings(biased, ["a", "b"])
    assert one.strength.low < 0 < one.strength.high
    false = sum(position(simulate(60, (0.4, -0.4), seed=seed), 2).p < 0.05 for seed in range(200))
    assert false <= 20


def with_runs(runs: int, spread: float, *, items: int = 100, gain: float = 0.0, seed: int = 0) -> list[Judgement]:
    """Two methods whose runs' strengths vary; each item is answered by a run of each that is drawn for it."""
    draws = np.random.default_rng(seed)
    quality = spread * draws.standard_normal((2, runs)) + np.array([[gain], [0.0]])
    found = []
    for item, order in enumerate(balanced(items, 2, draws)):
        one, other = draws.integers(0, runs, 2)
        wins = draws.random() < 1 / (1 + np.exp(quality[1, other] - quality[0, one]))
        ratings = (4, 2) if wins else (2, 4)
        found.append(Judgement(f"q{item}", "r1", "all", ratings, 0 if wins else 1, order, "", (f"a{one}", f"b{other}")))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "spread"), [(2, 0.0), (2, 0.6), (2, 0.3), (3, 0.6)])
def test_equal_methods_whose_runs_differ_are_seldom_called_different(runs: int, spread: float) -> None:
    duels = [summarise(with_runs(runs, spread, seed=seed), ("a", "b"), "nothing").duels[0] for seed in range(120)]
    assert sum(duel.holm < 0.05 for duel in duels) <= 0.05 * 120 + 5
    assert sum(duel.rating_holm < 0.05 for duel in duels) <= 0.05 * 120 + 5
    assert sum(duel.win_rate.low <= 0.5 <= duel.win_rate.high for duel in duels) >= 0.95 * 120 - 6
    assert all(duel.methods for duel in duels)


def test_a_better_method_is_found_over_its_runs() -> None:
    found = summarise(with_runs(3, 0.1, gain=1.5), ("a", "b"), "nothing")
    assert found.duels[0].holm < 0.05
    alone = summarise([replace(one, runs=()) for one in with_runs(3, 0.1, gain=1.5)], ("a", "b"), "nothing")
    assert not alone.duels[0].methods
    for wide, narrow in zip(found.standings, alone.standings, strict=True):
        assert wide.win_rate.high - wide.win_rate.low > narrow.win_rate.high - narrow.win_rate.low
        assert wide.strength.high - wide.strength.low > narrow.strength.high - narrow.strength.low
    assert "these very models" in verdicts(alone)[0]
    assert "these very models" not in verdicts(found)[0]


def test_ties_alone_say_nothing_and_warn_of_nothing() -> None:
    for runs in ((), ("a", "b")):
        ties = [Judgement(f"q{item}", "r1", "all", (3, 3), None, order, "", runs) for item, order in enumerate(balanced(20, 2, DRAWS))]
        (duel,) = summarise(ties, ("a", "b"), "nothing").duels
        assert (duel.p, duel.win_rate.value) == (1.0, 0.5)
