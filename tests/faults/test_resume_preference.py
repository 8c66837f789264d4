"""What a preference method learns beside its weights is in the checkpoint: continuing from one is never having stopped."""

import json

import pytest

from posttrain.runs.compose import compose
from posttrain.runs.job import run_job

BASE = [
    "model=nano", "data=arithmetic_pairs", "evaluation=none", "tracking=none", "hardware=cpu", "limit=60", "global_batch=8", "max_steps=6",
    "checkpoint.every_steps=4", "checkpoint.keep_last=9", "validate.at_start=false", "optimizer.lr=1e-3", "data.generator.held_out=24",
]  # fmt: skip
KINDS = {
    "running mean": ["method=dpo", "method.loss=bco"],
    "running mean and adapters": ["method=bco", "model/peft=lora"],
    "baseline": ["method=kto", "max_tokens=256", "max_length=128"],
    "moving reference": ["method=dpo", "method.reference_update_every=2"],
    "moving reference of adapters": ["method=dpo", "method.reference_update_every=4", "method.reference_update_mix=1.0", "model/peft=lora"],
    "whole step": ["method=dpo", "method.loss=aot", "max_tokens=256", "max_length=128"],
}


def train(folder, *overrides):
    assert run_job(compose([*BASE, *overrides, f"output_dir={folder}"])) == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["step"] > 4], (folder / "artifact" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_continuing_from_a_checkpoint_is_never_having_stopped(tmp_path, kind):
    whole = train(tmp_path / "whole", *KINDS[kind])
    (checkpoint,) = (tmp_path / "whole" / "checkpoints").glob("*step*4*")
    assert train(tmp_path / "second", *KINDS[kind], f"resume={checkpoint}") == whole


def test_a_line_that_was_refused_leaves_no_configuration_behind(tmp_path, capsys):
    wrong = compose([*BASE, "method=simpo", "method.loss=sigmoid", f"output_dir={tmp_path / 'run'}"])
    assert run_job(wrong) == 2
    assert "compares with a reference policy" in capsys.readouterr().err
    train(tmp_path / "run", "method=simpo")


def test_a_run_that_diverges_says_so_and_keeps_its_last_checkpoint(tmp_path, capsys):
    line = [*BASE, "method=dpo", "optimizer=sgd", "scheduler=constant", "gradient_clip=null", f"output_dir={tmp_path / 'run'}"]
    assert run_job(compose([*line, "optimizer.lr=1e20"])) == 1
    assert "the weights are lost. Lower optimizer.lr" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "failed"
