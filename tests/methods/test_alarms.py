"""Alarms say what is wrong, and only that."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

from posttrain.methods.parts.alarms import RewardWatch
from posttrain.methods.parts.health import DriftWatch


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


def test_a_watch_that_goes_on_says_what_one_that_never_stopped_says(caplog: Any) -> None:
    """Patience, what was told and the start go through a checkpoint's state as json would keep it, after any step."""
    alike = {"groups/informative": 0.0, "reward/mean": 0.5, "entropy": 1.0, "answers/length": 10.0}
    steps = [
        alike,
        {**alike, "entropy": 0.05},
        {**alike, "entropy": 0.05},
        {**alike, "entropy": 0.05, "kl": 2.0},
        {**alike, "entropy": 0.05},
    ]
    steps += [{**alike, "reward/mean": 0.6, "answers/length": 30.0}] * 4
    whole = told(caplog, *steps)
    assert [words.split(":")[0] for words in whole] == ["step 3", "step 4", "step 4", "step 8"]
    for stop in range(1, len(steps)):
        caplog.clear()
        first, second = RewardWatch(), RewardWatch()
        with caplog.at_level(logging.WARNING):
            for step, values in enumerate(steps[:stop], 1):
                first.look(step, values, leads=True)
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
            for step, values in enumerate(steps[stop:], stop + 1):
                second.look(step, values, leads=True)
        assert [record.getMessage() for record in caplog.records] == whole


def test_a_collapse_is_told_once_also_by_a_run_that_goes_on(caplog: Any) -> None:
    first, second = DriftWatch(), DriftWatch()
    fallen = {"drift/kl": 0.1, "drift/chosen": -0.9}
    first.look(5, fallen, leads=True)
    second.load_state_dict(first.state_dict())
    second.look(6, fallen, leads=True)
    assert len([record for record in caplog.records if "unlearning" in record.getMessage()]) == 1
