"""What a comparison says of budgets: the one that all arms had, or each one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from comparison_runs import make_arm, make_study, rewrite

from posttrain.runs.comparison.arms import named_arms
from posttrain.runs.comparison.command import report_of, report_on_study
from posttrain.runs.comparison.read import read_arms
from posttrain.runs.comparison.report import as_json
from posttrain.runs.comparison.study import read_study
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


def verdict(home: Path, arms: dict[str, list[Path]]) -> str:
    """The first line of it."""
    study = read_study(make_study(home, arms))
    named = named_arms(read_arms(study.arms))
    made = report_of(named, metric=None, smallest=0.01, baseline=None, better="auto", study=study)
    assert as_json(made)["verdict"][0] == made.verdicts[0]
    return made.verdicts[0]


def test_unequal_budgets_are_told(tmp_path: Path) -> None:
    arms = {"sft": arm(tmp_path, "sft", 3000, 2999.0), "dpo": arm(tmp_path, "dpo", 30000, 30100.0), "kto": arm(tmp_path, "kto", None, None)}
    (note,) = notes(tmp_path, arms, budget={"unit": "tokens", "amount": 3000})
    assert note == (
        "Budgets are unequal, and so arms are not compared at equal cost: sft 3000 tokens; dpo 30000 tokens; kto no budget. "
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


@pytest.mark.parametrize(
    ("spent", "told"),
    [
        ((2999.0, 3010.0), ""),
        ((3100.0, 3120.0), ""),
        ((1230.0, 3000.0), "sft spent 41 %, dpo spent 100 % of the budget."),
        ((1230.0, 1231.0), "sft spent 41 %, dpo spent 41 % of the budget."),
        ((2990.0, 3090.0), "sft spent 99.7 %, dpo spent 103 % of the budget."),
        ((None, 3000.0), "sft spent 13.3 %, dpo spent 100 % of the budget."),  # its result counts 400 tokens
    ],
)
def test_the_verdict_says_where_arms_did_not_spend_alike(tmp_path: Path, spent: tuple[float | None, float], told: str) -> None:
    found = verdict(tmp_path, {name: arm(tmp_path, name, 3000, some) for name, some in zip(("sft", "dpo"), spent, strict=True)})
    assert found.partition(" Not at equal compute: ")[2] == told


def test_the_verdict_says_where_budgets_differ(tmp_path: Path) -> None:
    found = verdict(tmp_path, {"sft": arm(tmp_path, "sft", 3000, 3000.0), "dpo": arm(tmp_path, "dpo", 6000, 6000.0)})
    assert found.endswith(" Not at equal compute: sft had 3000 tokens; dpo had 6000 tokens.")
    free = verdict(tmp_path, {name: arm(tmp_path, name, None, None) for name in ("kto", "cpo")})
    assert "Not at equal" not in free, "where arms cost what they cost, no verdict says that they cost the same"
