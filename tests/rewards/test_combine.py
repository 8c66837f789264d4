"""Values of several components as one reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from posttrain.rewards.base import Reward
from posttrain.rewards.combine import combine
from posttrain.types import Sample

NAN = math.nan


class Plain(Reward):
    """Only its keys matter."""

    def measure(self, samples: Sequence[Sample]) -> list[float]:
        return [0.0] * len(samples)


def one(values: Sequence[float], groups: Sequence[int] | None = None, **keys: Any) -> tuple[list[float], list[float]]:
    """Total and part of one component."""
    total, parts = combine(torch.tensor([values]), torch.tensor(groups or [0] * len(values)), [Plain(**keys)])
    return total.tolist(), parts[0].tolist()


def test_weights_and_watched_components() -> None:
    raw = torch.tensor([[1.0, 2.0], [10.0, NAN], [NAN, 4.0]])
    total, parts = combine(raw, torch.tensor([0, 0]), [Plain(weight=2.0), Plain(weight=0.0), Plain(weight=-1.0)])
    assert total.isnan().tolist() == [True, False]  # the watched one may fail
    assert total[1] == 0.0
    assert torch.equal(parts.nan_to_num(7), raw.double().nan_to_num(7))
    with pytest.raises(ValueError, match="one component"):
        combine(torch.zeros(0, 2), torch.tensor([0, 0]), [])


def test_z_scores_by_hand() -> None:
    assert one([1, 2, 3, NAN], normalise="batch")[1][:3] == pytest.approx([-math.sqrt(1.5), 0, math.sqrt(1.5)])
    assert one([1, 3, 10, 30], [7, 7, 2, 2], normalise="group")[1] == [-1, 1, -1, 1]
    for normalise in ("batch", "group"):
        assert one([0.1, 0.1, 0.1], normalise=normalise)[1] == [0, 0, 0]
        assert one([5.0], normalise=normalise)[1] == [0]
        assert all(map(math.isnan, one([NAN, NAN], normalise=normalise)[1]))


def test_difficulty_by_hand() -> None:
    # pass rates: 1 of 4; 2 of 2; 1 of 2 that are known
    values, groups = [1, 0, 0, 0, 1, 1, 1, 0, NAN], [0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert one(values, groups, difficulty=2.0)[1][:8] == [1 + 2 * 0.75, 0, 0, 0, 1, 1, 2, 0]


def test_the_order_is_normalise_difficulty_clip_weight() -> None:
    # z-scores -1/sqrt(3) three times and sqrt(3); times 1 + 4 * 3/4; clipped at 3; halved
    total, part = one([0, 0, 0, 1], normalise="group", difficulty=4.0, clip=3.0, weight=0.5)
    assert part == pytest.approx([-4 / math.sqrt(3)] * 3 + [3])
    assert total == pytest.approx([-2 / math.sqrt(3)] * 3 + [1.5])


def test_it_does_not_depend_on_how_answers_are_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    n, components = 96, [Plain(normalise="batch", clip=2.0), Plain(normalise="group", difficulty=0.5), Plain(weight=0.3)]
    raw = torch.randn(3, n, generator=generator).where(torch.rand(3, n, generator=generator) > 0.1, NAN)
    groups = torch.arange(n) // 8
    total, parts = combine(raw, groups, components)
    for seed in range(5):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        again, parts_again = combine(raw[:, order], groups[order] * 3 + 1, components)
        assert torch.equal(again.nan_to_num(9), total[order].nan_to_num(9))  # bit for bit
        assert torch.equal(parts_again.nan_to_num(9), parts[:, order].nan_to_num(9))
