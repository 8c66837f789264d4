"""By what a comparison decides where nothing was named: never by what is another quantity in one arm than in another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from comparison_runs import make_pipeline, make_run

from posttrain.errors import ConfigError
from posttrain.runs.comparison.arms import Arm, arms_of
from posttrain.runs.comparison.metric import choose
from posttrain.runs.comparison.quantity import cautions, ranked
from posttrain.runs.comparison.read import read_runs

OF_PAIRS = {"val/loss": 0.5, "val/rewards/accuracy": 0.7, "val/rewards/margin": 1.0}
DPO = {"name": "dpo", "loss": {"_target_": "dpo", "beta": 0.1}, "reference": "auto", "tail_weight": 1.0}
MATH = {"_target_": "math", "weight": 1.0, "timeout": 5.0}
LENGTH = {"_target_": "length", "weight": 0.5}


def arms(home: Path, metrics: dict[str, float], *configs: dict[str, Any]) -> list[Arm]:
    made = [make_run(home / str(place), seed=1, metrics=metrics, config=config) for place, config in enumerate(configs)]
    return arms_of(read_runs([str(folder) for folder in made]))


def chosen(found: list[Arm], metric: str | None = None) -> str:
    return choose([run for arm in found for run in arm.runs], metric)


def dpo(**changes: Any) -> dict[str, Any]:
    return {"method": {**DPO, **changes}}


@pytest.mark.parametrize(
    ("metrics", "one", "other", "metric"),
    [
        (OF_PAIRS, dpo(), {**dpo(), "optimizer": {"lr": 1.0}}, "val/loss"),
        (OF_PAIRS, dpo(), {**dpo(reference="copy", reference_cache="/there"), "model": {"name": "nano", "peft": "lora"}}, "val/loss"),
        (OF_PAIRS, dpo(), dpo(loss={"_target_": "dpo", "beta": 0.5}), "val/rewards/accuracy"),
        (OF_PAIRS, dpo(), dpo(loss={"_target_": "ipo", "beta": 0.1}), "val/rewards/accuracy"),
        ({"val/loss": 2.0, "val/perplexity": 7.0}, {"method": {"name": "sft", "label_smoothing": 0.0}},
            {"method": {"name": "sft", "label_smoothing": 0.1}}, "val/perplexity"),
        ({"val/reward": 0.5, "val/reward/math": 0.5}, {"reward": {"math": MATH}},
            {"reward": {"math": {**MATH, "timeout": 9.0}, "watched": {**LENGTH, "weight": 0.0}}}, "val/reward"),
        ({"eval/exact_match": 0.5, "val/reward": 0.5}, {"evaluation": {"exact_match": {"max_new_tokens": 8}}},
            {"evaluation": {"exact_match": {"max_new_tokens": 64}}}, "val/reward"),
        ({"eval/exact_match": 0.5}, {"evaluation": {"exact_match": {"max_new_tokens": None}}}, {"rollout": {"name": "native"}},
            "eval/exact_match"),
        ({"val/reward": 0.5, "eval/sampled/pass_at_1": 0.5}, {"reward": {"math": MATH}}, {"reward": {"math": MATH, "length": LENGTH}},
            "eval/sampled/pass_at_1"),
    ],
)  # fmt: skip
def test_the_first_that_is_the_same_in_all_arms_decides(
    tmp_path: Path, metrics: dict[str, float], one: dict[str, Any], other: dict[str, Any], metric: str
) -> None:
    found = arms(tmp_path, metrics, one, other)
    assert chosen(found) == metric
    assert cautions([run for arm in found for run in arm.runs], metric) == []


@pytest.mark.parametrize(
    ("metrics", "one", "other", "why"),
    [
        ({"val/loss": 1.0}, dpo(), dpo(loss={"_target_": "dpo", "beta": 0.5}), "method.loss.beta is 0.1 or 0.5"),
        ({"val/reward": 1.0}, {"reward": {"length": LENGTH}}, {"reward": {"length": {**LENGTH, "weight": 1.0}}},
            "reward.length.weight is 0.5 or 1.0"),
        (OF_PAIRS, dpo(), {**dpo(), "model": {"name": "nano", "path": "/tuned"}}, "the reference differs"),
        (OF_PAIRS, dpo(), dpo(tail_weight=0.5), "method.tail_weight is 1.0 or 0.5"),
    ],
)  # fmt: skip
def test_where_none_is_the_same_one_must_be_named(
    tmp_path: Path, metrics: dict[str, float], one: dict[str, Any], other: dict[str, Any], why: str
) -> None:
    found = arms(tmp_path, metrics, one, other)
    first = next(iter(metrics))
    with pytest.raises(ConfigError) as caught:
        chosen(found)
    (problem,) = caught.value.problems
    assert f"{first} is not the same quantity in all arms" in problem.message
    assert why in problem.message
    assert f"metric={first}" in problem.hint
    assert chosen(found, first) == first
    (caution,) = cautions([run for arm in found for run in arm.runs], first)
    assert why in caution


def test_a_stage_before_makes_another_reference(tmp_path: Path) -> None:
    """Supervised training and then DPO beside DPO alone: their losses are against different models."""
    alone = make_run(tmp_path / "dpo", seed=1, metrics=OF_PAIRS, config=dpo())
    staged = []
    for seed in (1, 2):
        sft = make_run(tmp_path / f"sft{seed}", seed=seed)
        last = make_run(tmp_path / f"last{seed}", seed=seed, metrics=OF_PAIRS, config={**dpo(), "model": {"path": f"/stages/{seed}"}})
        staged.append(make_pipeline(tmp_path / f"staged{seed}", {"sft": sft, "dpo": last}, seed=seed))
    runs = read_runs(list(map(str, [alone, *staged])))
    with pytest.raises(ConfigError, match="the reference differs"):
        choose(runs, None)
    assert choose(runs[1:], None) == "val/loss", "seeds of one pipeline are made alike"


def test_what_says_nothing_of_quality_does_not_decide() -> None:
    names = [f"eval/judge/{name}" for name in ("against_length", "consistent", "losses", "win_rate")]
    assert ranked([*names, "val/logps/chosen", "val/loss", "eval/mmlu/acc"]) == ["val/loss", "eval/judge/win_rate", "eval/mmlu/acc"]
