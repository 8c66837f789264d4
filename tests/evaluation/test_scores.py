"""Scores of single examples: their names, their file, and that their means are the metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from posttrain.data.tree import collate, tree_of
from posttrain.evaluation.exact_match import Checked, ExactMatch
from posttrain.evaluation.scores import Scores, content_of, names_of, read_scores, write_scores
from posttrain.evaluation.suites.harness import example_scores
from posttrain.functional.supervised import likelihood_metrics, likelihood_rows, likelihood_scores, likelihood_sums
from posttrain.types import StepShare


def test_the_same_question_twice_has_two_names() -> None:
    first, second, again = names_of(["2+2?", "3+5?", "2+2?"])
    assert len({first, second, again}) == 3
    assert again == f"{first}-1"
    assert names_of([b"2+2?"]) == [first]


def test_what_is_asked_makes_the_name() -> None:
    ids, weights = np.arange(4), np.array([0.0, 0.0, 1.0, 1.0])
    whole = content_of(tree_of([(ids, weights)]))
    assert whole == content_of(tree_of([(ids.copy(), weights.copy())]))
    assert whole != content_of(tree_of([(ids, np.array([0.0, 1.0, 1.0, 1.0]))]))


def test_a_file_of_several_metrics(tmp_path: Path) -> None:
    losses = Scores(["a", "b"], np.array([0.1, 0.4]), np.array([3.0, 1.0]))
    answers = Scores(["a", "a", "b"], np.array([1.0, 0.0, 1.0]), samples=np.array([0, 1, 0], np.int32))
    write_scores(tmp_path / "x.parquet", {"val/loss": losses, "eval/exact_match": answers})
    found = read_scores(tmp_path / "x.parquet")
    assert list(found) == ["val/loss", "eval/exact_match"]
    assert found["val/loss"].mean == pytest.approx(0.175)
    assert list(found["eval/exact_match"].examples) == ["a", "a", "b"]
    assert found["eval/exact_match"].samples.tolist() == [0, 1, 0]
    assert found["eval/exact_match"].mean == pytest.approx(2 / 3)


def test_likelihood_of_single_examples_adds_up() -> None:
    rows = [(np.arange(5), np.array([0.0, 1.0, 0.5, 0.0, 2.0])), (np.arange(3), np.zeros(3)), (np.arange(4), np.ones(4))]
    tree = collate([tree_of([row]) for row in rows], StepShare(7.0, 3, 1))
    logps, correct = -torch.rand(len(tree.target)), torch.rand(len(tree.target)) > 0.5
    found = likelihood_rows(logps, correct, tree)
    sums = likelihood_sums(logps, correct, tree.weight)
    assert {name: float(part.sum()) for name, part in found.items()} == pytest.approx({name: float(part) for name, part in sums.items()})
    value, weight = likelihood_scores(found)["loss"]
    assert weight.tolist() == [3.5, 0.0, 3.0]
    assert float((value * weight).nansum() / weight.sum()) == pytest.approx(
        likelihood_metrics({k: float(v) for k, v in sums.items()})["loss"]
    )


def test_exact_match_scores() -> None:
    found = ExactMatch((Checked(0, "2+2?", "4", "4", "4", True), Checked(1, "3+5?", "9", "8", "9", False))).scores
    assert found.values.tolist() == [1.0, 0.0]


def test_the_harness_has_metrics_that_are_no_means() -> None:
    asked = {"task": "t", "filter": "none", "arguments": ["q"], "expected": 0, "answers": [], "extracted": []}
    rows = [{**asked, "example": 0, "acc": 1.0, "perplexity": 2.0}, {**asked, "example": 1, "acc": 0.0, "perplexity": 4.0}]
    found = example_scores({"t/acc": 0.5, "t/perplexity": 2.7}, rows)
    assert list(found) == ["t/acc"]
    assert found["t/acc"].values.tolist() == [1.0, 0.0]
