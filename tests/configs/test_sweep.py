"""Sweeps: expansion, folder names, and one true sweep."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import ConfigError
from posttrain.runs.overrides import expand
from posttrain.runs.sweep import LONGEST_NAME, job_name


def options_of(group: str) -> list[str]:
    return {"model": ["nano", "nano_moe", "smollm3"]}[group]


def test_expansion_is_the_product_in_order() -> None:
    jobs = expand(["seed=1,2", "method.loss=nll,dft", "max_steps=3"], options_of)
    assert [list(job.values()) for job in jobs] == [
        [f"seed={seed}", f"method.loss={loss}", "max_steps=3"] for seed in (1, 2) for loss in ("nll", "dft")
    ]


def test_ranges_lists_globs_and_repeats() -> None:
    assert [job["seed"] for job in expand(["seed=range(0,3)"], options_of)] == ["seed=0", "seed=1", "seed=2"]
    assert [job["model"] for job in expand(["model=glob(nano*)"], options_of)] == ["model=nano", "model=nano_moe"]
    assert expand(["data.train=[a,b]"], options_of) == [{"data.train": "data.train=[a,b]"}]
    assert expand(["seed=1", "seed=2"], options_of) == [{"seed": "seed=2"}]
    assert expand([], options_of) == [{}]


def test_interval_is_refused() -> None:
    with pytest.raises(ConfigError):
        expand(["optimizer.lr=interval(0,1)"], options_of)


def test_job_names_are_folder_names() -> None:
    assert job_name(["method/loss=dft", "seed=1"]) == "method.loss=dft,seed=1"
    long = job_name([f"data.train=[{'a/b ' * 100}]"])
    assert len(long) <= LONGEST_NAME
    assert "/" not in long
    assert long != job_name([f"data.train=[{'a/b ' * 101}]"])


def test_a_sweep_goes_on_when_a_job_fails(posttrain: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]}] * 8
    (tmp_path / "good.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "broken.jsonl").write_text("{")
    common = ["model=nano", "max_steps=2", "global_batch=4", "tracking=none", "evaluation=none", "output_dir=sweep", "data=files"]
    outcome = posttrain("-m", *common, "data.train=broken.jsonl,good.jsonl")
    assert outcome.code == 2, outcome
    assert json.loads((tmp_path / "sweep" / "data.train=good.jsonl" / "result.json").read_text())["status"] == "finished"
    assert "2 runs in" in outcome.out
    assert "broken.jsonl" in outcome.err
    assert "Traceback" not in outcome.err
