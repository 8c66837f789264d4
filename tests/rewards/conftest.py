"""Answers for rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posttrain.rewards.base import Reward
from posttrain.rewards.compose import RewardSet


@pytest.fixture
def reward_set() -> Iterator[Callable[..., RewardSet]]:
    """Makes reward sets and closes them."""
    made: list[RewardSet] = []

    def make(**components: Reward) -> RewardSet:
        made.append(RewardSet(components))
        return made[-1]

    yield make
    for rewards in made:
        rewards.close()


@pytest.fixture
def user_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a Python file of a user."""

    def write(text: str, name: str = "mine.py") -> Path:
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return file

    return write
