"""Values that were measured otherwise are not compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison_runs import make_arm

from posttrain.errors import ConfigError
from posttrain.evaluation.scores import Scores
from posttrain.evaluation.suites.registry import find_suite
from posttrain.runs.comparison.arms import arms_of
from posttrain.runs.comparison.command import report_of
from posttrain.runs.comparison.read import read_runs
from posttrain.runs.comparison.report import Report
from posttrain.runs.evaluate import measured_as
from posttrain.runs.kept_scores import keep_scores

JUDGE, SAMPLED = "eval/judge/win_rate", "eval/sampled/pass_at_1"


def arms(home: Path, metric: str, *settings: dict[str, Any], key: str = "measured_as") -> list[str]:
    """Two arms of two seeds, whose metric was measured by these settings."""
    suite, name = metric.split("/")[1:]
    found = [*make_arm(home, "sft", gain=0.0, seeds=2), *make_arm(home, "dpo", gain=0.0, seeds=2)]
    for place, folder in enumerate(found):
        values = np.random.default_rng(place).integers(0, 2, 40).astype(float)
        keep_scores(folder, {name: Scores([f"{number}-0" for number in range(40)], values)}, suite)
        kept = {"metrics": {name: float(values.mean())}, "settings": {}, key: settings[min(place // 2, len(settings) - 1)]}
        (folder / "eval" / f"{suite}.json").write_text(json.dumps(kept))
    return [str(folder) for folder in found]


def compared(runs: list[str], metric: str) -> Report:
    return report_of(arms_of(read_runs(runs)), metric=metric, smallest=0.01, baseline=None, better="auto")


@pytest.mark.parametrize(
    ("metric", "setting", "one", "other"),
    [
        (JUDGE, "against", "/models/a", "/models/b"), (JUDGE, "criteria", "Is it right?", "Is it short?"),
        (JUDGE, "backend", {"_target_": "a", "model": "x"}, {"_target_": "a", "model": "y"}), (JUDGE, "max_new_tokens", 8, 512),
        (SAMPLED, "temperature", 0.7, 1.0), (SAMPLED, "samples", 4, 8), (SAMPLED, "max_new_tokens", 8, 512),
    ],
)  # fmt: skip
def test_other_settings_are_refused(tmp_path: Path, metric: str, setting: str, one: Any, other: Any) -> None:
    runs = arms(tmp_path, metric, {setting: one, "seed": 1}, {setting: other, "seed": 2})
    with pytest.raises(ConfigError) as caught:
        compared(runs, metric)
    assert [problem.where for problem in caught.value.problems] == [f"runs: {run}" for run in runs[2:]]
    for problem in caught.value.problems:
        assert f"{metric} was measured with {setting}" in problem.message
        assert f"in {runs[0]} with {setting}" in problem.message


def test_what_is_no_part_of_the_measure_may_differ(tmp_path: Path) -> None:
    one, other = ({"limit": k, "seed": k, "backend": {"url": f"http://{k}", "model": "x"}} for k in (1, 2))
    assert not any("kept no settings" in note for note in compared(arms(tmp_path, JUDGE, one, other), JUDGE).notes)


def test_results_without_settings_pass_with_a_note(tmp_path: Path) -> None:
    made = compared(arms(tmp_path, SAMPLED, {}, {"samples": 8}), SAMPLED)
    assert "2 of 4 runs kept no settings of sampled: whether they were measured alike is not known." in made.notes


def test_older_results_are_compared_by_the_settings_they_name(tmp_path: Path) -> None:
    runs = arms(tmp_path, SAMPLED, {"samples": 8, "temperature": 0.5}, {"samples": 8}, key="settings")
    assert compared(runs, SAMPLED).analysis.examples == 40


def against(model: str, weights: str) -> dict[str, Any]:
    return {"against": {"model": model, "weights": weights}}


def test_opponents_are_told_apart_by_their_weights(tmp_path: Path) -> None:
    moved = arms(tmp_path / "moved", JUDGE, against("/here", "ab"), against("/there", "ab"))
    assert compared(moved, JUDGE).analysis.examples == 40
    runs = arms(tmp_path / "replaced", JUDGE, against("/here", "ab"), against("/here", "cd"))
    with pytest.raises(ConfigError) as caught:
        compared(runs, JUDGE)
    assert [problem.where for problem in caught.value.problems] == [f"runs: {run}" for run in runs[2:]]
    problem = caught.value.problems[0]
    assert f"with against=/here (weights cd), in {runs[0]} with against=/here (weights ab)" in problem.message
    assert "against=DIR, one for all" in problem.hint


def test_an_opponent_that_is_known_by_no_name_is_told(tmp_path: Path) -> None:
    """Each run's own starting model, as results were kept that do not say which it was."""
    made = compared(arms(tmp_path, JUDGE, {"against": "start"}, against("/here", "ab")), JUDGE)
    (told,) = made.warnings
    assert told.startswith("2 of 4 runs did not keep which model they were compared with (judge, against=start)")


def test_all_settings_are_kept() -> None:
    """Also those that the function itself has, so that a value named in one place and left out in the other is the same."""
    assert measured_as(find_suite("sampled"), {}).items() >= {"samples": 8, "temperature": 1.0, "max_new_tokens": 512}.items()
    assert measured_as(find_suite("judge"), against("/here", "ab"))["against"] == {"model": "/here", "weights": "ab"}
