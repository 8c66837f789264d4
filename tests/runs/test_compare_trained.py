"""`posttrain compare` on runs that were trained: two learning rates, two seeds each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.runs.commands.compare import run as command
from posttrain.runs.commands.table import Call
from posttrain.runs.compose import compose
from posttrain.runs.job import run_job

COMMON = [
    "tracking=none",
    "hardware=cpu",
    "limit=60",
    "data.generator.held_out=16",
    "global_batch=8",
    "max_steps=4",
    "validate.every_steps=2",
]
ASKED = ["evaluation.exact_match.before=false", "evaluation.exact_match.max_new_tokens=2", "evaluation.samples=0"]


def test_trained_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for lr in ("3e-3", "1e-6"):
        for seed in (1, 2):
            folder = tmp_path / f"optimizer.lr={lr},seed={seed}"
            assert run_job(compose([*COMMON, *ASKED, f"optimizer.lr={lr}", f"seed={seed}", f"output_dir='{folder}'"])) == 0
    call = Call(arguments=(f"runs={tmp_path}", f"to={tmp_path / 'report'}", "metric=val/loss"))
    assert command(call) == 0
    found = json.loads((tmp_path / "report" / "compare.json").read_text())
    idle, learnt = sorted(found["arms"], key=lambda arm: arm["differs"]["optimizer.lr"])
    assert learnt["mean"] < idle["mean"]
    assert (found["examples"], found["reference"], found["better"]) == (16, "optimizer.lr=0.003", "lower")
    assert learnt["differs"].keys() == {"optimizer.lr"}
    assert found["pairs"][0]["verdict"] == "different"
    assert "optimizer.lr=0.003 is better than optimizer.lr=1e-06 by" in capsys.readouterr().out
    assert learnt["cost"]["flops"] > 0
    kept = sorted(file.name for file in (tmp_path / "optimizer.lr=3e-3,seed=1" / "eval" / "steps").iterdir())
    assert kept == ["0.parquet", "2.parquet"], "the end's are in examples.parquet"
    changes = {change["arm"]: change for change in found["changes"] if change["metric"] == "val/loss"}
    assert changes["optimizer.lr=0.003"]["low"] < changes["optimizer.lr=0.003"]["high"] < 0
    assert command(Call(arguments=(f"runs={tmp_path}", f"to={tmp_path / 'again'}"))) == 0
    exact = json.loads((tmp_path / "again" / "compare.json").read_text())
    assert (exact["metric"], exact["examples"]) == ("eval/exact_match", 16)
    assert exact["pairs"][0]["verdict"] == "inconclusive", "nobody answers anything in two tokens, and sixteen examples are few"
