"""Alarms say what is wrong, and only that."""

from __future__ import annotations

import logging
import math
from typing import Any

from posttrain.methods.parts.alarms import RewardWatch


def told(caplog: Any, *rollouts: dict[str, float]) -> list[str]:
    caplog.clear()
    watch = RewardWatch()
    with caplog.at_level(logging.WARNING):
        for step, values in enumerate(rollouts, 1):
            watch.look(step, values, leads=True)
    return [record.getMessage() for record in caplog.records]


def test_a_reward_that_judges_nothing_is_no_lack_of_variance(caplog: Any) -> None:
    unscored = {"groups/informative": 0.0, "reward/mean": math.nan, "reward/failed/math": 32.0}
    (words,) = told(caplog, unscored, unscored, unscored, unscored)
    assert "step 1: the reward could not judge any answer" in words
    assert "reward/failed/*" in words
    assert "`answer`" in words


def test_equal_rewards_and_single_failures_have_their_own_words(caplog: Any) -> None:
    alike = {"groups/informative": 0.0, "reward/mean": 0.5}
    (words,) = told(caplog, alike, alike, alike)
    assert "no variance" in words
    (words,) = told(caplog, {"groups/informative": 0.5, "reward/mean": 0.5, "reward/failed/math": 1.0})
    assert "some answers could not be scored" in words
