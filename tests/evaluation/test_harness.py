"""lm-evaluation-harness on a model in memory, with local tasks: no network."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from posttrain.errors import ConfigError, DataError
from posttrain.evaluation.suites import harness as module
from posttrain.evaluation.suites.harness import flat_metrics, harness, safe_name, task_errors

GENERATE = """
task: local_generate
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["Question:"], do_sample: false, max_gen_toks: 16}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list: [{name: number, filter: [{function: regex, regex_pattern: "(-?[0-9]+)"}, {function: take_first}]}]
metadata: {version: 1.0}
"""
CHOOSE = """
task: local_choose
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")


@pytest.fixture
def tasks(tmp_path: Path, known: dict[str, str]) -> str:
    """Two task files over the questions that the trained model knows; the second expected answer is wrong."""
    rows = [
        {"question": question, "answer": answer, "choices": [known[question], "It is 1."], "label": 0}
        for question, answer in zip(known, ("4", "9"), strict=True)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("generate", GENERATE), ("choose", CHOOSE)):
        (tmp_path / f"{name}.yaml").write_text(text.replace("DATA", str(data)))
    return str(tmp_path)


def test_local_tasks(trained_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tasks: str) -> None:
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    side = tokenizer.padding_side
    result = harness(trained_model, tokenizer, tasks=["local_generate", "local_choose"], include_path=tasks)
    assert result.metrics["local_generate/exact_match/number"] == 0.5
    assert result.metrics["local_choose/acc"] == 1.0
    assert all(safe_name(name) == name for name in result.metrics)
    assert len(result.rows) == 4
    assert result.rows[0]["extracted"] == ["4"]
    json.dumps(result.rows)
    json.dumps(result.details)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()
    assert tokenizer.padding_side == side


def test_one_document_has_no_standard_error(trained_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tasks: str) -> None:
    result = harness(trained_model, tokenizer, tasks=["local_choose"], include_path=tasks, limit=1)
    assert result.metrics == {"local_choose/acc": 1.0}


def test_flat_metrics() -> None:
    results = {"a": {"alias": "a", "sample_len": 3, "acc,none": 0.5, "acc_stderr,none": "N/A", "em,strict-match": 1, "em,x(y)": 0.25}}
    assert flat_metrics(results) == {"a/acc": 0.5, "a/em/strict-match": 1.0, "a/em/x_y_": 0.25}


@pytest.mark.slow
def test_unknown_tasks(random_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "hub_reachable", lambda: False)
    with pytest.raises(ConfigError, match=r"gsm8kk.*did you mean gsm8k"):
        harness(random_model, tokenizer, tasks=["gsm8kk"])


def test_data_out_of_reach_is_a_clear_error(
    random_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a network it fails at once (no retries), and the offline switches are put back."""
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(module, "hub_reachable", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    switches = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    with pytest.raises(DataError, match=r"data of gsm8k cannot be had.*data=FILE"):
        harness(random_model, tokenizer, tasks=["gsm8k"])
    assert switches == (huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)


def test_a_missing_package_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="pip install"), task_errors(["ifeval"]):
        raise ModuleNotFoundError("No module named 'langdetect'", name="langdetect")
