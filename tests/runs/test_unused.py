"""Options that the data leave without effect are told before training."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import Problem
from posttrain.runs.compose import compose
from posttrain.runs.job import run_job

PAIR = {"prompt": "Hi", "chosen": "Good day", "rejected": "Go"}
RATED = {"prompt": "Hi", "response": "Yo", "attributes": {"readability": 0.5}}
CODE = {
    "instruction": "Hi", "preference": "readability", "responses": [{"response": "A"}, {"response": "B"}],
    "annotations": [{"rating": "5"}, {"rating": "2"}],
}  # fmt: skip
BRANCH = ["method.head=branch", "method.head.width=8"]


@pytest.fixture
def outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a method one step on twelve copies of a row; the exit code, and where it saw problems."""

    def run(row: dict[str, Any], method: str, *more: str) -> tuple[int, list[str]]:
        told: list[Problem] = []
        monkeypatch.setattr("posttrain.runs.job.report.show", lambda problems, **_: told.extend(problems))
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row | {"id": number}) + "\n" for number in range(12)))
        line = [f"method={method}", "data=files", f"data.train={tmp_path}/rows.jsonl", f"data.cache_dir={tmp_path}/cache", "model=nano"]
        line += ["data.val_fraction=0", "tracking=none", "hardware=cpu", "max_steps=1", "global_batch=4", f"output_dir={tmp_path}/run"]
        code = run_job(compose([*line, *more]))
        assert (code == 0) == (tmp_path / "run" / "metrics.jsonl").exists()
        return code, [problem.where for problem in told]

    return run


@pytest.mark.parametrize(
    "ratings", [{}, {"score_chosen": 2, "score_rejected": 2}, {"score_chosen": 2}, {"margin": "N/A"}], ids=["none", "ties", "one", "N/A"]
)
def test_a_margin_without_a_gap_of_ratings(outcome, ratings):
    assert outcome(PAIR | ratings, "reward_model", "method.loss.margin_scale=0.5") == (2, ["method.loss.margin_scale"])


@pytest.mark.parametrize("ratings", [{"score_chosen": 2, "score_rejected": 1}, {"margin": 1}])
def test_a_margin_with_one(outcome, ratings):
    assert outcome(PAIR | ratings, "reward_model", "method.loss.margin_scale=0.5") == (0, [])


def test_attributes_that_the_user_names_and_no_row_rates(outcome):
    assert outcome(CODE, "reward_model", *BRANCH, "data.attributes=[redability,style]") == (2, ["data.attributes"])


@pytest.mark.parametrize("more", [["data.attributes=[readability,style]"], ["data.attributes=[style]", "method.head.attribute_weight=0"]])
def test_attributes_of_which_some_are_rated_or_none_need_be(outcome, more):
    assert outcome(CODE, "reward_model", *BRANCH, *more) == (0, [])


def test_the_default_attributes_are_no_mistake_but_told(outcome, tmp_path):
    assert outcome(PAIR, "reward_model", *BRANCH) == (0, [])
    said = [line for line in (tmp_path / "run" / "log.txt").read_text().splitlines() if "no row rates" in line]
    assert len(said) == 1
    assert "WARNING" in said[0]
    assert "correctness, efficiency, readability, robustness" in said[0]


def test_ratings_without_a_score(outcome):
    assert outcome(RATED, "rating_model") == (2, ["method.loss"])
    assert outcome(RATED | {"score": 1}, "rating_model") == (0, [])


def test_answers_without_a_score_where_the_head_learns_nothing_else(outcome, tmp_path):
    row = {"prompt": "Hi", "response": "Yo", "attributes": {"readability": 0.5}}
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row | {"score": 1, "id": 100 + number}) + "\n" for number in range(12)))
    two = f"data.train=[{tmp_path}/rows.jsonl,{tmp_path}/more.jsonl]"
    assert outcome(row, "rating_model", two, "data.attributes=[readability]") == (2, ["method.head"])
    assert outcome(row, "rating_model", two, "data.attributes=[readability]", *BRANCH) == (0, [])


@pytest.fixture(autouse=True)
def quiet():
    yield
    for handler in list(logging.getLogger("posttrain").handlers):
        logging.getLogger("posttrain").removeHandler(handler)
        handler.close()
