"""An online run that was ended between its last checkpoint and its end is finished by the same command."""

import json
import shutil

from posttrain.runs.compose import compose
from posttrain.runs.job import run_job

RUN = [
    "method=grpo", "model=nano", "data=arithmetic", "tracking=none", "hardware=cpu", "limit=40", "global_batch=2", "max_steps=2",
    "rollout.max_new_tokens=6", "rollout.group_size=2",
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
