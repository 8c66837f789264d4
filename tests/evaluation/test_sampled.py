"""Several answers to a question: pass@k by hand and by counting, the majority, and `posttrain eval suite=sampled`."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from posttrain.errors import ConfigError
from posttrain.evaluation.sampled import majority, pass_at_k
from posttrain.evaluation.suites.about import powers
from posttrain.runs.comparison.metric import by_example
from posttrain.runs.evaluate import main
from posttrain.runs.kept_scores import kept_scores


def test_pass_at_k_counts_all_ways_to_choose() -> None:
    for right in range(6):
        answers = [1] * right + [0] * (5 - right)
        for k in (1, 2, 4, 5):
            counted = np.mean([any(some) for some in combinations(answers, k)])
            assert float(pass_at_k(np.array(right), 5, k)) == pytest.approx(counted)
    assert pass_at_k(np.array([0, 3, 10]), 10, 1) == pytest.approx([0.0, 0.3, 1.0])
    with pytest.raises(ValueError, match="pass@9 needs at least 9 samples, got 8"):
        pass_at_k(np.array([1]), 8, 9)


def test_the_majority() -> None:
    assert majority(["4", "4.0", "5", None], "4") == 1.0, "the same number, written otherwise"
    assert majority(["5", "5", "4"], "4") == 0.0
    assert majority(["5", "4"], "4") == 0.5
    assert majority([None, None], "4") == 0.0


def test_powers() -> None:
    assert (powers(1), powers(8), powers(6)) == ([1], [1, 2, 4, 8], [1, 2, 4, 6])


def test_eval_suite_sampled(run_dir: Path, known: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    rows = [{"question": q, "answer": f"{known[q]}\n#### {answer}"} for q, answer in zip(known, ("4", "9"), strict=True)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {"run": str(run_dir), "suite": "sampled", "data": str(tmp_path / "questions.jsonl"), "samples": 4, "max_new_tokens": 20}
    assert main(asked) == 0
    metrics = json.loads((run_dir / "eval" / "sampled.json").read_text())["metrics"]
    assert metrics["greedy"] == 0.5
    assert 0 < metrics["pass_at_1"] <= metrics["pass_at_2"] <= metrics["pass_at_4"] <= 1
    kept = kept_scores(run_dir)
    single = kept["eval/sampled/pass_at_1"]
    assert len(single.values) == 8
    names, values, _ = by_example(single)
    assert list(names) == sorted(kept["eval/sampled/maj_at_4"].examples), "the same examples, so that paired tests work"
    assert values.mean() == pytest.approx(metrics["pass_at_1"])
    lines = (run_dir / "eval" / "sampled.samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["sample"] for line in lines] == [-1, 0, 1, 2, 3] * 2
    assert main({**asked, "samples": 4}) == 0
    assert kept_scores(run_dir)["eval/sampled/pass_at_1"].values.tolist() == single.values.tolist(), "decided by the seed"
    with pytest.raises(ConfigError, match="temperature=0"):
        main({**asked, "temperature": 0.0})
