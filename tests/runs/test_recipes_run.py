"""Every recipe of conf/method/ really runs: its stages find their data, start from the right artifact, and hand on one that names it."""

import json
import os

import pytest

from posttrain.runs.check import compose_and_check
from posttrain.runs.job import run_job

LINE = [
    "model=nano", "model.architecture.num_hidden_layers=1", "hardware=cpu", "tracking=none", "evaluation=none", "validate.at_start=false",
    "validate.at_end=false", "limit=8", "max_steps=1", "data.generator.held_out=2", "global_batch=2", "max_length=600",
]  # fmt: skip
SAMPLED = ["rollout.group_size=2", "rollout.max_new_tokens=4"]
RECIPES = {
    "staged_dpo": ([], ["", "policy=sft"]),
    "staged_rlhf": (SAMPLED, ["", "policy=sft", "policy=sft reward.reward_model=reward_model"]),
    "staged_iterated": ([*SAMPLED, "stages.dpo.repeat=2"], ["", "policy=sft", "policy=online_dpo"]),
    "staged_teacher": (
        [*SAMPLED, "stages.sft.data=arithmetic", "stages.dpo.data=arithmetic_pairs", "stages.grpo.data=arithmetic"],
        ["", "policy=sft", "policy=dpo"],
    ),
    "staged_code": (
        [*SAMPLED, "stages.sft.data=arithmetic", "stages.rl.data=files", "stages.rl.data.train={code}", "stages.pretrain.data=files",
         "stages.pretrain.data.train={text}"],
        ["", "policy=pretrain", "policy=sft"],
    ),
}  # fmt: skip

EIGHT_BIT = ("staged_teacher", "staged_code")  # quantised weights, an optimizer in 8 bits


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "plain.txt").write_text("to be or not to be\n\n" * 40)
    task = {"text": "Write a function one that returns 1.", "code": "def one():\n    return 1", "test_list": ["assert one() == 1"]}
    (folder / "tasks.jsonl").write_text("".join(json.dumps({"task_id": number, **task}) + "\n" for number in range(8)))
    return {"text": folder / "plain.txt", "code": folder / "tasks.jsonl"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs(name, files, store, tmp_path):
    if name in EIGHT_BIT:
        pytest.importorskip("bitsandbytes")
    lines, parents = RECIPES[name]
    lines = [line.format(**files) for line in lines]
    config = compose_and_check([f"method={name}", *LINE, *lines, f"output_dir={tmp_path}/run", f"stages_dir={store}"])
    assert run_job(config) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["method"], result["steps"]) == ("finished", name, len(config["stages"]))
    assert os.path.realpath(result["artifact"]) == os.path.realpath(tmp_path / "run" / "artifact")
    records = [json.loads((tmp_path / "run" / s["folder"] / "artifact" / "artifact.json").read_text()) for s in result["stages"]]
    named = [" ".join(f"{key}={parent['method']}" for key, parent in sorted(record["parents"].items())) for record in records]
    assert named == parents
