"""What a comparison says of budgets: the one that all arms had, or each one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comparison_runs import make_arm, make_study, rewrite

from posttrain.runs.comparison.command import report_on_study
from posttrain.runs.study.record import write_study


def arm(home: Path, name: str, tokens: int | None, spent: float | None) -> list[Path]:
    budget = {"flops": None, "tokens": tokens, "gpu_seconds": None}
    runs = make_arm(home, name, gain=0.0, seeds=2, examples=20, config={"budget": budget})
    for folder in runs:
        if spent is not None:
            rewrite(folder, "result.json", budget={"unit": "tokens", "asked": tokens, "spent": spent})
    return runs


def notes(home: Path, arms: dict[str, list[Path]], **changes: Any) -> list[str]:
    return [note for note in report_on_study(make_study(home, arms, **changes)).notes if "udget" in note]


def test_unequal_budgets_are_told(tmp_path: Path) -> None:
    arms = {"sft": arm(tmp_path, "sft", 3000, 2999.0), "dpo": arm(tmp_path, "dpo", 30000, 30100.0), "kto": arm(tmp_path, "kto", None, None)}
    (note,) = notes(tmp_path, arms, budget={"unit": "tokens", "amount": 3000})
    assert note == (
        "Budgets are unequal, and so arms are not compared at equal cost: sft 3000 tokens; dpo 30000 tokens; kto none. "
        "Spent: 99.97% to 100.33% of their own."
    )


def test_one_budget_is_told_once(tmp_path: Path) -> None:
    arms = {"sft": arm(tmp_path, "sft", 3000, 2999.0), "dpo": arm(tmp_path, "dpo", 3000, 3001.0)}
    assert notes(tmp_path, arms) == ["Budget of every arm: 3000 tokens. Spent: 99.97% to 100.03% of it."]


def test_a_study_records_the_budget_that_all_runs_have(tmp_path: Path) -> None:
    one, other = ({"budget": {"tokens": amount}} for amount in (3000, 30000))
    for configs, budget in (([one, one], {"unit": "tokens", "amount": 3000.0}), ([one, other], None)):
        write_study(tmp_path, {"sft": [tmp_path / "a"], "dpo": [tmp_path / "b"]}, configs, None)
        assert json.loads((tmp_path / "study.json").read_text())["budget"] == budget
