"""Advantages by hand, by enumeration, and where there is nothing to compare."""

from functools import partial
from itertools import combinations
from statistics import fmean, pstdev, stdev

import pytest
import torch

from posttrain.functional import advantages
from posttrain.types import GroupRewards

NAN = float("nan")
numbers = partial(torch.tensor, dtype=torch.float64)


def rewards(*parts, weights=None):
    parts = numbers(parts)
    weights = numbers(weights or [1.0] * len(parts))
    total = (parts * weights[:, None, None]).nansum(0).masked_fill(parts.isnan().all(0), NAN)
    return GroupRewards(total, parts, weights)


ROWS = [[1.0, 0.0, 0.5, 0.0], [0.0, NAN, 1.0, 0.5]]
SCORED = [1.0, 0.0, 0.5, 0.0, 0.0, 1.0, 0.5]
ALL = {
    "group": advantages.group,
    "batch": partial(advantages.group, scale="batch"),
    "none": partial(advantages.group, scale="none"),
    "leave_one_out": advantages.leave_one_out,
    "normalised": partial(advantages.leave_one_out, normalise=True),
    "reinforce_plus_plus": advantages.reinforce_plus_plus,
    "baseline": partial(advantages.reinforce_plus_plus, baseline=True),
    "decoupled": advantages.decoupled,
    "pass_at_k": partial(advantages.pass_at_k, k=1),
    "raw": advantages.raw,
}


def test_group():
    first, second = ROWS[0], [0.0, 1.0, 0.5]
    found = advantages.group(rewards(ROWS))
    assert found[0].tolist() == pytest.approx([(r - fmean(first)) / (stdev(first) + 1e-4) for r in first])
    assert found[1].tolist() == pytest.approx([-0.5 / 0.5001, 0.0, 0.5 / 0.5001, 0.0])
    assert fmean(second) == 0.5
    assert advantages.group(rewards(ROWS), scale="none")[1].tolist() == pytest.approx([-0.5, 0, 0.5, 0])
    by_batch = advantages.group(rewards(ROWS), scale="batch", eps=0.0)
    assert by_batch[1].tolist() == pytest.approx([-0.5 / stdev(SCORED), 0, 0.5 / stdev(SCORED), 0])
    with pytest.raises(ValueError, match="scale"):
        advantages.group(rewards(ROWS), scale="prompt")


def test_leave_one_out():
    found = advantages.leave_one_out(rewards(ROWS))
    assert found[0].tolist() == pytest.approx([1 - 0.5 / 3, -0.5, 0.5 - 1 / 3, -0.5])
    assert found[1].tolist() == pytest.approx([-0.75, 0, 0.75, 0])
    plain = [1 - 0.5 / 3, -0.5, 0.5 - 1 / 3, -0.5, -0.75, 0.75, 0]
    normalised = advantages.leave_one_out(rewards(ROWS), normalise=True, eps=0.0)
    assert normalised[0].tolist() == pytest.approx([(a - fmean(plain)) / stdev(plain) for a in plain[:4]])


def test_reinforce_plus_plus():
    found = advantages.reinforce_plus_plus(rewards(ROWS), eps=0.0)
    assert found[0].tolist() == pytest.approx([(r - fmean(SCORED)) / stdev(SCORED) for r in ROWS[0]])
    centred = [r - 0.375 for r in ROWS[0]] + [-0.5, 0.5, 0.0]
    found = advantages.reinforce_plus_plus(rewards(ROWS), baseline=True, eps=0.0)
    assert found[0].tolist() == pytest.approx([(r - fmean(centred)) / stdev(centred) for r in centred[:4]])
    assert advantages.reinforce_plus_plus(rewards([[0.5, 0.5]])).tolist() == [[0.0, 0.0]]


def test_decoupled():
    first, second = [1.0, 0.0, 0.0, 1.0], [10.0, 30.0, 20.0, 0.0]
    mixed = [2 * (a - fmean(first)) / stdev(first) - (b - fmean(second)) / stdev(second) for a, b in zip(first, second, strict=True)]
    found = advantages.decoupled(rewards([first], [second], weights=[2.0, -1.0]), eps=0.0)
    assert found[0].tolist() == pytest.approx([(m - fmean(mixed)) / stdev(mixed) for m in mixed])


def test_decoupled_does_not_see_the_scale_of_a_component():
    first, second = [[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]], [[1.0, 3.0, 2.0, 0.0], [0.0, 1.0, 1.0, 3.0]]
    scaled = [[100 * b for b in row] for row in second]
    plain = advantages.decoupled(rewards(first, second), eps=0.0)
    torch.testing.assert_close(advantages.decoupled(rewards(first, scaled), eps=0.0), plain)


def test_decoupled_with_a_component_that_scored_nothing():
    found = advantages.decoupled(rewards([[1.0, 0.0, NAN, 1.0]], [[NAN, 0.5, NAN, 1.0]]))
    assert found.isfinite().all()
    assert found[0, 2] == 0


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("row", [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
def test_pass_at_k_is_the_mean_over_all_sets(k, row):
    sets = list(combinations(range(5), k))
    reward = {s: float(any(row[i] for i in s)) for s in sets}
    mean, deviation = fmean(reward.values()), pstdev(reward.values())
    expected = [fmean((reward[s] - mean) / deviation for s in sets if i in s) if deviation else 0.0 for i in range(5)]
    found = advantages.pass_at_k(rewards([[float(r) for r in row]]), k=k)
    assert found[0].tolist() == pytest.approx(expected)


def test_pass_at_k_without_the_unscored():
    found = advantages.pass_at_k(rewards([[1.0, NAN, 0.0, 0.0], [1.0, NAN, NAN, NAN]]), k=2)
    alone = advantages.pass_at_k(rewards([[1.0, 0.0, 0.0]]), k=2)
    assert found[0].tolist() == pytest.approx([alone[0, 0].item(), 0.0, alone[0, 1].item(), alone[0, 1].item()])
    assert found[1].tolist() == [0.0] * 4
    for k in (0, 5):
        with pytest.raises(ValueError, match="k must"):
            advantages.pass_at_k(rewards(ROWS), k=k)


@pytest.mark.parametrize("name", ALL)
def test_unscored_answers_have_none(name):
    found = ALL[name](rewards([*ROWS, [NAN] * 4]))
    assert found.shape == (3, 4)
    assert found.isfinite().all()
    assert found[1, 1] == 0
    assert found[2].tolist() == [0.0] * 4


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("raw", "reinforce_plus_plus")])
def test_without_variance_there_is_nothing_to_learn(name):
    found = ALL[name](rewards([[0.7] * 4, [0.1, 0.1, NAN, 0.1]]))
    assert found.abs().max() < 1e-8


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("raw", "reinforce_plus_plus")])
def test_a_group_of_one_has_nothing_to_compare_with(name):
    assert ALL[name](rewards([[0.7], [0.2], [-1.0]])).tolist() == [[0.0]] * 3


def test_a_group_of_one_in_the_batch():
    assert advantages.raw(rewards([[0.7], [NAN]])).tolist() == [[0.7], [0.0]]
    assert advantages.reinforce_plus_plus(rewards([[0.0], [2.0]])).flatten().tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])
    assert advantages.reinforce_plus_plus(rewards([[0.7]])).tolist() == [[0.0]]


def test_informative():
    found = advantages.informative(
        rewards([[1.0, 0.0, 1.0], [0.1, 0.1, 0.1], [NAN, 0.5, 0.5], [NAN, 0.5, 0.25], [NAN] * 3, [NAN, NAN, 1.0]])
    )
    assert found.tolist() == [True, False, False, True, False, False]
