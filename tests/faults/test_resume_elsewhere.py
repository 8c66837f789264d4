"""Runs continued with another number of micro-batches a step, which max_tokens and the devices decide, go on where they were."""

import json

import pytest
import torch
import yaml

from posttrain.runs.compose import compose
from posttrain.runs.job import run_job

BASE = [
    "model=nano", "data=arithmetic", "evaluation=none", "tracking=none", "hardware=cpu", "limit=60", "max_steps=6",
    "checkpoint.every_steps=1", "checkpoint.keep_last=20", "validate.at_start=false", "optimizer.lr=1e-3", "data.generator.held_out=24",
]  # fmt: skip
SFT = ["method=sft", "global_batch=8"]
ONLINE = [
    "method=grpo", "global_batch=4", "rollout.max_new_tokens=10", "rollout.group_size=4", "reward=[language]",
    "reward.language.scripts=[han]", "method.minibatches=2",
]  # fmt: skip


def train(folder, *overrides):
    code = run_job(compose([*BASE, *overrides, f"output_dir={folder}"]))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return code, [row for row in rows if "loss" in row]


def checkpoint(folder, step):
    (found,) = (folder / "checkpoints").glob(f"step-*{step}")
    return found


@pytest.mark.parametrize("method", [SFT, ONLINE])
@pytest.mark.parametrize(("before", "after"), [(400, 4000), (4000, 400)])
def test_another_max_tokens_sees_the_same_examples(tmp_path, method, before, after):
    _, whole = train(tmp_path / "whole", *method, f"max_tokens={before}")
    place = checkpoint(tmp_path / "whole", 2)
    code, rows = train(tmp_path / "again", *method, f"max_tokens={after}", f"resume={place}")
    assert code == 0
    expected = [row for row in whole if row["step"] > 2]
    assert [row["step"] for row in rows] == [3, 4, 5, 6]
    for row, other in zip(rows, expected, strict=True):
        assert (row["tokens"], row["examples"], row["lr"]) == (other["tokens"], other["examples"], other["lr"])
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3, abs=1e-5)
    saved = torch.load(checkpoint(tmp_path / "again", 6) / "state.ckpt", weights_only=True)["loops"]["fit_loop"]
    ready, (loader,) = saved["epoch_loop.batch_progress"]["current"]["ready"], saved["state_dict"]["combined_loader"]
    assert ready == loader["given"]


def test_a_rollout_that_does_not_fit_any_more_is_told(tmp_path, capsys):
    train(tmp_path / "whole", *ONLINE, "max_tokens=4000")
    place = checkpoint(tmp_path / "whole", 3)
    code, _ = train(tmp_path / "again", *ONLINE, "max_tokens=60", f"resume={place}")
    assert code == 2
    assert "middle of a rollout" in capsys.readouterr().err


def test_a_run_on_two_processes_goes_on_alone(tmp_path):
    _, whole = train(tmp_path / "whole", *SFT, "hardware=2xcpu", "max_tokens=400")
    assert yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())["hardware"]["devices"] == 2
    code, rows = train(tmp_path / "again", *SFT, "max_tokens=400", f"resume={checkpoint(tmp_path / 'whole', 3)}")
    assert code == 0
    for row, other in zip(rows, [row for row in whole if row["step"] > 3], strict=True):
        assert (row["step"], row["tokens"]) == (other["step"], other["tokens"])
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)
