"""How many held-out prompts are answered: spread over the set, and within a share of what training costs."""

from __future__ import annotations

import math

import pytest

from posttrain.data.held_out import spread
from posttrain.runs.measure import LEAST, Measures, answering


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
