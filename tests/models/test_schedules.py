"""Learning-rate curves by hand."""

from __future__ import annotations

import pytest
import torch

from posttrain.errors import ConfigError
from posttrain.models import schedules


def curve(schedule, steps: int, **keys) -> list[float]:
    """The learning rate each of `steps` optimizer steps sees, with a base of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = schedule(optimizer, steps, **keys)
    seen = []
    for _ in range(steps):
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine() -> None:
    half = 2**-0.5
    want = [0.5, 1.0, 1.0, (1 + half) / 2, 0.5, (1 - half) / 2]
    assert curve(schedules.cosine, 6, warmup=2) == pytest.approx(want)


def test_cosine_ends_at_the_floor() -> None:
    got = curve(schedules.cosine, 1000, warmup=0, min_ratio=0.1)
    assert got[0] == 1.0
    assert got[500] == pytest.approx(0.55)
    assert got[-1] == pytest.approx(0.1, abs=1e-5)


def test_linear() -> None:
    assert curve(schedules.linear, 5, warmup=1, min_ratio=0.2) == pytest.approx([1.0, 1.0, 0.8, 0.6, 0.4])


def test_constant() -> None:
    assert curve(schedules.constant, 5, warmup=4) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert curve(schedules.constant, 3) == [1.0, 1.0, 1.0]


def test_wsd() -> None:
    assert curve(schedules.wsd, 8, warmup=2, decay=4, shape="linear") == pytest.approx([0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    root = curve(schedules.wsd, 8, warmup=2, decay=4, shape="sqrt", min_ratio=0.5)
    assert root == pytest.approx([0.5, 1, 1, 1, 1, 0.75, 1 - 0.5 * 0.5**0.5, 1 - 0.5 * 0.75**0.5])


def test_warmup_as_a_fraction_rounds_up() -> None:
    assert schedules.steps_of(0.03, 350, key="x") == 11
    assert schedules.steps_of(0.5, 3, key="x") == 2
    assert schedules.steps_of(0, 3, key="x") == 0
    assert schedules.steps_of(1, 3, key="x") == 1
    assert schedules.steps_of(500.0, 3, key="x") == 500


def test_a_fraction_that_is_whole_steps_is_not_rounded_up() -> None:
    for steps in (10, 20, 100, 300, 1000, 2000):
        for percent in range(1, 100):
            assert schedules.steps_of(percent / 100, steps, key="x") == -(-percent * steps // 100), (percent, steps)
    assert curve(schedules.wsd, 100, warmup=0.45, decay=0.55, shape="linear")[44:46] == [1.0, 1.0]


def test_one_is_a_step_and_not_the_whole_run() -> None:
    assert schedules.steps_of(1.0, 100, key="x") == 1
    with pytest.raises(ConfigError, match="steps from 1, or a fraction of the run below 1"):
        schedules.steps_of(1.5, 100, key="x")


def test_a_run_shorter_than_its_warmup_stays_in_it() -> None:
    assert curve(schedules.cosine, 2, warmup=500) == pytest.approx([1 / 500, 2 / 500])


@pytest.mark.parametrize("length", [-1, 1.5])
def test_impossible_lengths(length) -> None:
    with pytest.raises(ConfigError, match=r"scheduler\.warmup"):
        curve(schedules.linear, 10, warmup=length)


def test_wsd_that_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="do not fit"):
        curve(schedules.wsd, 10, warmup=6, decay=6)


def test_resumed_schedule_goes_on_where_it_was() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    first = schedules.cosine(optimizer, 10, warmup=2)
    for _ in range(4):
        optimizer.step()
        first.step()
    fresh_optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    second = schedules.cosine(fresh_optimizer, 10, warmup=2)
    second.load_state_dict(first.state_dict())
    fresh_optimizer.load_state_dict(optimizer.state_dict())
    for _ in range(3):
        optimizer.step(), first.step(), fresh_optimizer.step(), second.step()
        assert fresh_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
