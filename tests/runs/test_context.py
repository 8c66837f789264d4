"""Answers that do not fit the model are refused before a weight is loaded; and how many held-out prompts an online run answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import ConfigError
from posttrain.models.architectures import architecture_config
from posttrain.models.tokenizers import byte_tokenizer
from posttrain.runs.check import compose_and_check
from posttrain.runs.compose import compose
from posttrain.runs.context import check_context
from posttrain.runs.inputs import load_inputs
from posttrain.runs.job import run_job

GRPO = [
    "method=grpo", "model=nano", "data=arithmetic", "tracking=none", "hardware=cpu", "limit=40", "global_batch=2", "max_steps=1",
    "rollout.group_size=2", "rollout.max_new_tokens=6", "reward=[length]",
]  # fmt: skip
LONG = ["rollout.max_new_tokens=90", "model.architecture.max_position_embeddings=100"]
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [4.0] * 16, "original_max_position_embeddings": 64}
WANTED = "evaluation.exact_match.max_new_tokens"


SFT = ["method=sft", "model=nano", "data=arithmetic", "hardware=cpu", "limit=40", "model.architecture.max_position_embeddings=100"]


def refused(*line: str) -> list[str]:
    """Where the problems are that the data and the model's configuration show."""
    config = compose_and_check(line)
    prepared = load_inputs(config)[1]
    with pytest.raises(ConfigError) as raised:
        check_context(config, prepared)
    return [problem.where for problem in raised.value.problems]


def refused_at_once(*line: str) -> list[str]:
    """Where the problems are that the line alone shows."""
    with pytest.raises(ConfigError) as raised:
        compose_and_check(line)
    return [problem.where for problem in raised.value.problems]


def fits(*line: str) -> bool:
    config = compose_and_check(line)
    return check_context(config, load_inputs(config)[1]) is None


@pytest.mark.parametrize("hardware", ["cpu", "2xcpu"])
def test_a_run_ends_before_its_model_is_built(tmp_path: Path, monkeypatch: Any, capsys: Any, hardware: str) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("posttrain.runs.train.build_policy", never)
    monkeypatch.setattr("posttrain.runs.processes.run_ranks", never)
    assert run_job(compose([*GRPO, *LONG, f"hardware={hardware}", f"output_dir={tmp_path / 'run'}"])) == 2
    told = capsys.readouterr().err
    assert "rollout.max_new_tokens: a prompt and its answer may have" in told
    assert "the model has positions for 100" in told


def test_a_published_model_is_asked_by_its_configuration_alone(tmp_path: Path) -> None:
    nano = compose(["model=nano"])["model"]["architecture"]
    architecture_config({**nano, "max_position_embeddings": 100}).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    published = [*GRPO, "model=hf", f"model.path={tmp_path}"]
    assert refused(*published, "rollout.max_new_tokens=90") == ["rollout.max_new_tokens"]
    assert fits(*published)


def test_an_answer_to_a_held_out_prompt_fits_too() -> None:
    assert refused(*SFT, f"{WANTED}=95") == [WANTED]
    assert fits(*SFT, f"{WANTED}=20")
    assert fits(*SFT)


@pytest.mark.parametrize(("rope", "bound"), [(LONGROPE, 64), ({"rope_type": "dynamic", "factor": 2.0}, 100)])
def test_frequencies_that_follow_the_longest_of_a_batch_are_no_surprise(tmp_path: Path, rope: dict[str, Any], bound: int) -> None:
    nano = compose(["model=nano"])["model"]["architecture"]
    shape = {**nano, "max_position_embeddings": 100, "rope_parameters": {"rope_theta": 1e4, **rope}}
    architecture_config(shape).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": "q", "completion": "w" * n}) + "\n" for n in (5, 90, 6, 7)))
    line = ["method=sft", "model=hf", f"model.path={tmp_path}", "data=files", f"data.train={tmp_path / 'rows.jsonl'}", "hardware=cpu"]
    assert refused(*line) == ["max_length"]
    assert fits(*line, f"max_length={bound}")
    published = [*GRPO, "model=hf", f"model.path={tmp_path}"]
    assert fits(*published)
    if bound < 100:
        assert refused(*published, f"rollout.max_new_tokens={bound - 9}") == ["rollout.max_new_tokens"]


def test_what_needs_no_data_is_told_at_once() -> None:
    assert refused_at_once(*GRPO, f"{WANTED}=7") == [WANTED]
    assert refused_at_once(*GRPO, "rollout.max_new_tokens=4096") == ["rollout.max_new_tokens"]
    assert fits(*GRPO, f"{WANTED}=6")


@pytest.mark.parametrize(("examples", "most", "answered"), [(5, 3, 3), (2, 3, 2), (None, 3, 3)])
def test_how_many_held_out_prompts_are_answered(tmp_path: Path, capsys: Any, examples: int | None, most: int, answered: int) -> None:
    evaluation = "evaluation=none" if examples is None else f"evaluation.exact_match.examples={examples}"
    line = [*GRPO, evaluation, f"validate.max_examples={most}", "validate.at_start=false", f"output_dir={tmp_path}"]
    assert run_job(compose(line)) == 0
    assert f"answering {answered} held-out prompts" in capsys.readouterr().err
    if examples is not None:
        assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == answered
        assert 0 <= json.loads((tmp_path / "result.json").read_text())["metrics"]["eval/exact_match"] <= 1
