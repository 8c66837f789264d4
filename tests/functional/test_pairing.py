"""Which of a prompt's answers make pairs: tables by hand."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.functional.pairing import RULES, most_pairs, paired

NAN = math.nan
REWARDS = torch.tensor(
    [[0.2, 0.9, 0.5, 0.9], [0.0, NAN, 1.0, NAN], [0.3, 0.3, 0.3, 0.3], [NAN, NAN, 0.1, NAN], [NAN] * 4], dtype=torch.float64
)
DRAWS = torch.tensor([[0.8, 0.4, 0.1, 0.9], [0.5, 0.1, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4], [0.1] * 4, [0.1] * 4])
TABLE = {
    # the first of the equal best; equal ones make none; one scored answer has nobody to be compared with
    "best_worst": ([[(1, 0)], [(2, 0)], [], [], []], 1),
    "all": ([[(1, 0), (2, 0), (3, 0), (1, 2), (3, 2)], [(2, 0)], [], [], []], 1 + 6),
    "random_two": ([[(1, 2)], [(2, 0)], [], [], []], 1),
}


@pytest.mark.parametrize("rule", TABLE)
def test_pairs_by_hand(rule: str) -> None:
    found = paired(REWARDS, DRAWS, rule=rule)
    pairs, tied = TABLE[rule]
    assert [sorted(made) for made in found.pairs] == [sorted(made) for made in pairs]
    assert (found.tied, found.left_out) == (tied, 2 + 3 + 4)


@pytest.mark.parametrize("rule", RULES)
def test_a_margin_drops_what_is_nearly_equal(rule: str) -> None:
    strict = paired(REWARDS, DRAWS, rule=rule, margin=0.4)
    for values, own, every in zip(REWARDS.tolist(), strict.pairs, paired(REWARDS, DRAWS, rule=rule).pairs, strict=True):
        assert set(own) == {(a, b) for a, b in every if values[a] - values[b] > 0.4}
    assert paired(REWARDS, DRAWS, rule=rule, margin=2.0).pairs == ((),) * 5


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("group", [2, 3, 7])
def test_the_most_pairs_a_group_makes(rule: str, group: int) -> None:
    rewards, draws = torch.rand(50, group, dtype=torch.float64), torch.rand(50, group)
    assert max(len(made) for made in paired(rewards, draws, rule=rule).pairs) == most_pairs(rule, group)


def test_two_at_random_are_any_two() -> None:
    rewards = torch.arange(4.0, dtype=torch.float64).expand(2000, 4)
    draws = torch.rand(2000, 4, generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(4, 4)
    for ((a, b),) in paired(rewards, draws, rule="random_two").pairs:
        counts[a, b] += 1
    assert counts.triu().sum() == 0
    assert counts.tril(-1)[counts.tril(-1) > 0].tolist() == pytest.approx([2000 / 6] * 6, rel=0.2)
