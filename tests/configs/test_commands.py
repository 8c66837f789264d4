"""Commands that prepare data, in one process each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_plan_counts_parameters_steps_and_tokens(posttrain: Callable[..., Any]) -> None:
    outcome = posttrain("plan", "data.generator.train=512", "data.generator.held_out=8", "hardware=4xa100", "epochs=2")
    assert outcome.code == 0, outcome
    for words in ("1,018,240 (100 %)", "runs here", "no", "4 CUDA devices", "tokens a step", "seed: 0"):
        assert words in outcome.out
    assert "steps" in outcome.out
    assert "16" in outcome.out  # 512 examples, two epochs, batches of 64


def test_plan_needs_no_data_of_the_hub(posttrain: Callable[..., Any]) -> None:
    outcome = posttrain("plan", "data=gsm8k", "model=nano", "max_steps=7", "max_length=100")
    assert outcome.code == 0, outcome
    assert "at most 6,400" in outcome.out


def test_data_shows_tokens(posttrain: Callable[..., Any]) -> None:
    outcome = posttrain("data", "limit=20")
    assert outcome.code == 0, outcome
    assert "arithmetic" in outcome.out
