"""Runs that start from another run, which is made first."""

import json

import pytest

from posttrain.errors import ConfigError
from posttrain.runs.check import compose_and_check
from posttrain.runs.compose import compose
from posttrain.runs.entering import applied, config_of
from posttrain.runs.job import run_job

FIRST = '"experiment=quickstart","max_steps=2","limit=40","evaluation=none","validate.at_start=false"'
LINE = [
    "method=grpo", "model=nano", "hardware=cpu", "tracking=none", "evaluation=none", "validate.at_start=false", "validate.at_end=false",
    "max_steps=1", "global_batch=2", "limit=20", "rollout.group_size=2", "rollout.max_new_tokens=8", "seed=3",
]  # fmt: skip


def problems(*overrides):
    with pytest.raises(ConfigError) as raised:
        compose_and_check([*LINE, *overrides])
    return {problem.where for problem in raised.value.problems}


def test_mistakes_of_the_first_run_are_told_before_anything_starts():
    assert problems('entering=["metod=sft","optimizer.lr=fast"]') == {"entering: metod=sft", "entering: optimizer.lr"}
    assert problems(f"entering=['entering=[{FIRST}]']") == {"entering"}


def test_the_first_run_has_the_seed_of_this_one_unless_it_names_its_own():
    config = compose(LINE)
    assert config_of(["experiment=quickstart"], config)["seed"] == 3
    assert config_of(["experiment=quickstart", "seed=7"], config)["seed"] == 7


@pytest.mark.slow
def test_the_first_run_is_made_once_and_its_artifact_is_the_model(tmp_path):
    config = compose([*LINE, f"entering=[{FIRST}]", f"output_dir={tmp_path / 'run'}"])
    assert run_job(config) == 0
    entered = tmp_path / "run" / "entering" / "artifact"
    assert applied(config)["model"]["path"] == str(entered)
    lineage = json.loads((tmp_path / "run" / "artifact" / "artifact.json").read_text())
    assert str(entered) in json.dumps(lineage)
    made = (entered / "model.safetensors").stat().st_mtime_ns
    assert run_job({**config, "max_steps": 2}) == 0  # goes on, with the same beginning
    assert (entered / "model.safetensors").stat().st_mtime_ns == made
