"""Runs continued with another number of micro-batches a step, which max_tokens and the devices decide, go on where they were."""

import json
import shutil

import pytest
import torch
import yaml

from posttrain.runs.compose import compose
from posttrain.runs.job import run_job
from posttrain.runs.resume import set_aside

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


def test_a_checkpoint_of_another_model_is_refused(tmp_path, capsys):
    train(tmp_path / "whole", *SFT, "max_steps=2")
    there = tmp_path / "whole"
    alone = tmp_path / "alone" / "step-00000002"
    shutil.copytree(checkpoint(there, 2), alone)

    def refused(name, *overrides):
        assert run_job(compose([*BASE, *SFT, *overrides, f"output_dir={tmp_path / name}"])) == 2
        told = capsys.readouterr().err
        assert "Traceback" not in told
        return told

    assert "model.architecture.hidden_size: the run that resume names has" in refused(
        "a", f"resume={there}", "+model.architecture.hidden_size=32"
    )
    assert "model.peft.kind: the run that resume names has None, this command 'lora'" in refused("b", f"resume={there}", "model/peft=lora")
    assert "optimizer.lr: the run that resume names has 0.001, this command 1e-05" in refused("f", f"resume={there}", "optimizer.lr=1e-5")
    assert "is of step 2, and this run ends at 1" in refused("g", f"resume={there}", "max_steps=1")
    assert not (tmp_path / "b" / "log.txt").exists(), "before anything is loaded"
    assert "resume: the checkpoint does not fit this run: it lacks" in refused("c", f"resume={alone}", "model/peft=lora")
    assert "has the shape" in refused("d", f"resume={alone}", "+model.architecture.intermediate_size=32")
    assert "weights that this model has not" in refused("e", f"resume={alone}", "+model.architecture.num_hidden_layers=1")


def test_a_run_without_its_config_is_refused_and_can_be_set_aside(tmp_path, capsys):
    line = [*SFT, "max_steps=2", "checkpoint.every_steps=2"]
    train(tmp_path / "run", *line)
    (tmp_path / "run" / "config.yaml").unlink()
    assert run_job(compose([*BASE, *line, f"output_dir={tmp_path / 'run'}"])) == 2
    told = capsys.readouterr().err
    assert "holds a run without its config.yaml" in told
    assert "Traceback" not in told
    assert train(tmp_path / "run", *line, "resume=never")[0] == 0
    assert (tmp_path / "run" / "previous-1" / "result.json").is_file()


def test_setting_aside_goes_on_counting_where_earlier_ones_were_removed(tmp_path):
    (tmp_path / "previous-2").mkdir()
    (tmp_path / "previous-mine").mkdir()
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    set_aside(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["previous-2", "previous-3", "previous-mine"]
    assert (tmp_path / "previous-3" / "config.yaml").is_file()
