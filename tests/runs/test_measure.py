"""How many held-out prompts are answered: spread over the set, and within a share of what training costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from posttrain.data.held_out import spread
from posttrain.models.tokenizers import byte_tokenizer
from posttrain.rewards.base import Reward
from posttrain.rewards.compose import RewardSet
from posttrain.rollout.base import Generator
from posttrain.rollout.collect import Collector
from posttrain.runs.measure import LEAST, Measures, answering
from posttrain.runs.online import OnlineMeasures
from posttrain.runs.opponents import Opponents
from posttrain.types import Completion, Group, Sample


@pytest.mark.parametrize("size", [1, 2, 7, 64, 200])
def test_places_are_spread_and_more_of_them_include_the_fewer(size: int) -> None:
    for count in range(1, size + 1):
        found = spread(range(size), count)
        assert found == sorted(set(found))
        assert len(found) == count
        assert set(found) <= set(spread(range(size), count + 1))
        gaps = [b - a for a, b in zip([0, *found], [*found, size], strict=True)]
        assert max(gaps) <= 2 * size / count + 1
    assert spread(range(size), size + 5) == spread(range(size), None) == list(range(size))


@pytest.mark.parametrize(
    ("share", "trained", "times", "expected"),
    [
        (0.1, 1_000_000, 2, 50),  # 100,000 tokens are 1,000 for each of 50 prompts, twice
        (0.1, 1_000_000, 1, 100),
        (0.1, 100_000_000, 2, 200),
        (0.1, 1_000, 2, LEAST),
        (0.1, math.inf, 2, 200),  # how long training is shows later
        (None, 1_000, 2, 200),
    ],
)
def test_answers_have_a_share_of_the_training(share: float | None, trained: float, times: int, expected: int) -> None:
    config = {"evaluation": {"exact_match": {"share": share}}}
    measures = Measures(config, None, None, None, print, trained)  # type: ignore[arg-type]
    assert measures._affordable(200, 1000, times=times) == expected
    assert measures._affordable(5, 1000, times=times) == 5


def test_what_is_left_out_is_told() -> None:
    assert answering(200, 200, 40) == "answering 200 held-out prompts (at most 40 tokens each)"
    assert "16 of 200" in answering(16, 200, 40)
    assert "share=null" in answering(16, 200, 40)


class Some(Reward):
    """The number that an answer says; it raises at any other text."""

    def measure(self, samples: Sequence[Sample]) -> list[float]:
        return [float(sample.completion) for sample in samples]


class HeldOut:
    """Prompts without facts."""

    def __getitem__(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(ids=np.array([index], np.int32))

    def value(self, name: str, index: int) -> str | None:
        return '{"prompt": [], "meta": {}}' if name == "facts" else None


def test_answers_that_a_reward_fails_on_are_in_no_mean_and_counted() -> None:
    said: list[str] = []
    known: Any = {"some": Some(), "watched": Some(weight=0.0)}
    collector = Collector(HeldOut(), Silent(group_size=1), RewardSet(known), byte_tokenizer(), 0)  # type: ignore[arg-type]
    measures = OnlineMeasures({}, SimpleNamespace(val=HeldOut()), byte_tokenizer(), None, said.append, collector=collector)  # type: ignore[arg-type]
    found = measures._rewards(collector, [_answered(number, text) for number, text in enumerate(["1", "break it", "0", "1"])])
    assert found == {
        "val/reward": pytest.approx(2 / 3), "val/reward/some": pytest.approx(2 / 3), "val/reward/watched": pytest.approx(2 / 3),
        "val/unscored": 0.25, "val/unscored/some": 0.25, "val/unscored/watched": 0.25,
    }  # fmt: skip
    assert "25.0% (val/unscored)" in said[0]
    assert len(measures.scores["val/reward"].values) == 3
    fine = measures._rewards(collector, [_answered(0, "1")])
    assert fine == {"val/reward": 1.0, "val/reward/some": 1.0, "val/reward/watched": 1.0, "val/unscored": 0.0}
    assert len(said) == 1


class Longer(Reward):
    """The longer answer of a pair wins; it says nothing of a pair with a mute one."""

    compares = True

    def measure(self, samples: Sequence[Sample]) -> list[float]:
        found: list[float] = []
        for a, b in zip(samples[::2], samples[1::2], strict=True):
            mute = math.nan if "mute" in (a.completion, b.completion) else 0.0
            found += [mute + float(a.length > b.length), mute + float(b.length > a.length)]
        return found


def test_comparisons_without_a_verdict_are_counted(tmp_path: Path) -> None:
    collector = Collector(HeldOut(), Silent(group_size=1), RewardSet({"longer": Longer()}), byte_tokenizer(), 0)  # type: ignore[arg-type]
    opponents = Opponents(tmp_path / "first.json", leads=True)
    assert opponents.win_rates(collector, [_answered(number, "12") for number in range(4)], step=0) == {}
    later = [_answered(number, text) for number, text in enumerate(["123", "1", "mute", "mute"])]
    assert opponents.win_rates(collector, later, step=1) == {"val/win_rate/longer": 0.5, "val/unscored/longer": 0.5}
    assert opponents.win_rates(collector, later[:2], step=1) == {"val/win_rate/longer": 0.5}


class Silent(Generator):
    """Is never asked."""

    def generate(self, requests: Sequence[Any], *, sampling: Any = None) -> list[list[Completion]]:
        raise AssertionError


def _answered(number: int, text: str) -> Group:
    tokens = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    return Group(number, np.zeros(1, np.int32), (Completion(tokens, np.zeros(len(tokens), np.float32), "stop"),))
