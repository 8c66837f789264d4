"""Runs that begin again in their own folder, and runs that go on longer than they were planned."""

import json
import shutil

import pytest

from posttrain.runs.compose import compose
from posttrain.runs.job import run_job

BASE = [
    "method=sft", "model=nano", "data=arithmetic", "evaluation=none", "tracking=none", "hardware=cpu", "limit=60", "global_batch=4",
    "data.generator.held_out=20",
]  # fmt: skip


def run(folder, *overrides):
    assert run_job(compose([*BASE, *overrides, f"output_dir={folder}"])) == 0
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_killed_before_its_first_checkpoint_starts_over_cleanly(tmp_path):
    first = run(tmp_path / "run", "max_steps=3")
    for name in ("checkpoints", "artifact"):
        shutil.rmtree(tmp_path / "run" / name)
    (tmp_path / "run" / "result.json").unlink()
    assert run(tmp_path / "run", "max_steps=3") == first


def test_a_longer_run_follows_its_new_schedule(tmp_path):
    whole = run(tmp_path / "whole", "max_steps=8")
    run(tmp_path / "run", "max_steps=4")
    longer = run(tmp_path / "run", "max_steps=8")
    rates = {row["step"]: row["lr"] for row in longer if "lr" in row}
    wanted = {row["step"]: row["lr"] for row in whole if "lr" in row}
    for step in range(5, 9):
        assert rates[step] == pytest.approx(wanted[step], rel=1e-12)
