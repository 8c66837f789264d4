"""An online run that was ended between its last checkpoint and its end is finished by the same command."""

import json
import shutil

from posttrain.runs.compose import compose
from posttrain.runs.job import run_job

RUN = [
    "method=grpo", "model=nano", "data=arithmetic", "tracking=none", "hardware=cpu", "limit=40", "global_batch=2", "max_steps=2",
    "rollout.max_new_tokens=6", "rollout.group_size=2", "validate.max_examples=4",
    "reward=[length]",
]  # fmt: skip


def test_a_run_without_a_step_left_is_measured_and_handed_on(tmp_path):
    config = compose([*RUN, f"output_dir={tmp_path}"])
    assert run_job(config) == 0
    before = json.loads((tmp_path / "result.json").read_text())
    weights = (tmp_path / "artifact" / "model.safetensors").read_bytes()
    (tmp_path / "result.json").unlink()
    shutil.rmtree(tmp_path / "artifact")
    assert run_job(config) == 0
    after = json.loads((tmp_path / "result.json").read_text())
    assert (after["steps"], after["metrics"]) == (before["steps"], before["metrics"])
    assert (tmp_path / "artifact" / "model.safetensors").read_bytes() == weights


def test_the_best_checkpoint_has_the_highest_held_out_reward(tmp_path, caplog):
    extra = ["checkpoint.every_steps=1", "validate.every_steps=1", "max_steps=3", "evaluation=none", "validate.max_examples=3"]
    assert run_job(compose([*RUN, *extra, f"output_dir={tmp_path}"])) == 0
    scores = [json.loads(path.read_text())["score"] for path in tmp_path.glob("checkpoints/step-*/meta.json")]
    assert any(score is not None for score in scores)
    assert not any("never measured" in record.message for record in caplog.records)
    assert "eval/exact_match" not in json.loads((tmp_path / "result.json").read_text())["metrics"]


def test_a_monitor_that_is_never_measured_is_told_once(tmp_path, caplog):
    assert run_job(compose([*RUN, "checkpoint.every_steps=1", "checkpoint.monitor=val/loss", f"output_dir={tmp_path}"])) == 0
    assert sum("val/loss is never measured" in record.message for record in caplog.records) == 1
