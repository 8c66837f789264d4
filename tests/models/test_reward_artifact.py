"""Reward models handed on: plain transformers and our own loader compute what was trained."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from test_model_artifact import RECORD, record_of, trained
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from posttrain.data.tree import collate, tree_of
from posttrain.errors import ConfigError
from posttrain.functional.head import HeadSpec
from posttrain.models.classifiers import STEPS, check_classifier
from posttrain.models.heads import make
from posttrain.models.loading import build_model, seeded
from posttrain.models.policy import PolicyModel, causal_lm
from posttrain.models.reward import Judge, judge_states, load_judge, load_step_judge, padded
from posttrain.models.reward_artifact import check_reward_artifact, save_reward_artifact, save_step_artifact
from posttrain.types import StepShare

CPU = torch.device("cpu")
NAMES = ("efficiency", "readability")
OPTIONS = {"scalar": {}, "branch": {"width": 16, "looks": 2}, "quantile": {"quantiles": 5, "reward": "median"}}


def head_for(model, name="scalar"):
    with seeded(3):
        return make(name, causal_lm(model).config.get_text_config().hidden_size, NAMES, OPTIONS[name])


def sequences():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size) for size in (9, 40, 23, 31)]


def saved(conf, folder, head="scalar", *, name="nano", peft=None):
    """A model, its head and the folder of its artifact."""
    model, tokenizer = trained(conf, name=name, peft=peft)
    model.eval()
    found = head_for(model, head)
    return model, found, save_reward_artifact(model, found, tokenizer, folder / "artifact", record=RECORD)


def live(model, head):
    return Judge(causal_lm(model).base_model, head)(sequences())


@pytest.mark.parametrize("name", ["nano", "nano_moe", "nano_gemma", "better_ai_moe_tiny"])
def test_a_scalar_head_is_a_plain_sequence_classifier(conf, tmp_path, name):
    model, head, folder = saved(conf, tmp_path, name=name)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder)
    assert (classifier.config.num_labels, classifier.config.id2label) == (1, {0: "reward"})
    ids, mask = padded(sequences(), CPU)
    ids = torch.where(mask.bool(), ids, classifier.config.pad_token_id)
    with torch.no_grad():
        plain = classifier(input_ids=ids, attention_mask=mask).logits[:, 0]
    torch.testing.assert_close(plain, live(model, head).reward, rtol=1e-6, atol=1e-6)
    assert not model.training
    assert record_of(folder)["form"] == "full"


def test_the_tree_says_what_the_classifier_says(conf, tmp_path):
    model, head, folder = saved(conf, tmp_path)
    prompt, *answers = sequences()
    whole = [np.concatenate([prompt, answer]) for answer in answers]
    example = tree_of([(ids, np.append(np.zeros(len(ids) - 1), 1.0)) for ids in whole])
    tree = collate([example], StepShare(3.0, 1, 1))
    policy = PolicyModel(model, layout="padded", head=HeadSpec())
    with torch.no_grad():
        ours = judge_states(head, policy.hidden(tree)[0], tree.mark).reward
    torch.testing.assert_close(load_judge(folder, device=CPU)(whole).reward, ours, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("head", OPTIONS)
def test_every_head_comes_back_bit_for_bit(conf, tmp_path, head):
    model, found, folder = saved(conf, tmp_path, head)
    want, got = live(model, found), load_judge(folder, device=CPU)(sequences())
    for name in ("reward", "attributes", "quantiles", "levels"):
        there, back = getattr(want, name), getattr(got, name)
        assert (there is None and back is None) or torch.equal(there, back)
    if head != "scalar":
        assert sorted(record_of(folder)["files"]) == ["head/model.safetensors", "model.safetensors"]
        assert isinstance(AutoModel.from_pretrained(folder), type(causal_lm(model).base_model))


def test_a_float32_head_over_a_bfloat16_body_comes_back_unrounded(conf, tmp_path):
    _, tokenizer = trained(conf)
    model = build_model(conf("nano"), dtype=torch.bfloat16, seed=2)
    head = head_for(model)
    folder = save_reward_artifact(model, head, tokenizer, tmp_path / "artifact", record=RECORD)
    judge = load_judge(folder, device=CPU)
    assert judge.body.dtype == torch.bfloat16
    assert torch.equal(judge.head.score.weight, head.score.weight)
    assert torch.equal(judge(sequences()).reward, live(model, head).reward)


@pytest.mark.parametrize("peft", [{"kind": "lora"}, {"kind": "dora"}, {"kind": "lora", "quantise": "nf4"}], ids=["lora", "dora", "qlora"])
@pytest.mark.parametrize("head", ["scalar", "branch"])
def test_adapters_are_merged_and_lie_beside(conf, tmp_path, head, peft):
    model, found, folder = saved(conf, tmp_path, head, peft=peft)
    assert record_of(folder)["form"] == "merged"
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    torch.testing.assert_close(load_judge(folder, device=CPU)(sequences()).reward, live(model, found).reward, rtol=1e-4, atol=1e-5)


def test_steps_are_a_token_classifier(conf, tmp_path):
    model, tokenizer = trained(conf)
    with seeded(3):
        head = torch.nn.Linear(model.config.hidden_size, 2)
    folder = save_step_artifact(model, head, tokenizer, tmp_path / "artifact", record=RECORD)
    classifier = AutoModelForTokenClassification.from_pretrained(folder)
    assert classifier.config.id2label == {0: "wrong", 1: "right"}
    ids = sequences()[1]
    with torch.no_grad():
        plain = classifier(input_ids=torch.from_numpy(ids)[None]).logits[0].softmax(-1)[:, 1]
        want = head(model.base_model(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0]).softmax(-1)[:, 1]
    assert torch.equal(plain, want)
    assert torch.equal(load_step_judge(folder, device=CPU)(ids, np.array([3, 17])), want[[3, 17]])


def test_a_family_without_the_class_is_refused_before_training(conf):
    model, _ = trained(conf, name="nano_gemma")
    with pytest.raises(ConfigError, match="no AutoModelForTokenClassification for gemma3_text"):
        check_classifier(model, STEPS, torch.nn.Linear(model.config.hidden_size, 2))
    check_reward_artifact(model, head_for(model))


def test_a_head_that_the_class_cannot_hold_is_refused(conf):
    model, _ = trained(conf)
    with pytest.raises(ConfigError, match="one linear map"):
        check_classifier(model, STEPS, torch.nn.Linear(model.config.hidden_size, 2, bias=False))


@pytest.mark.parametrize("head", ["scalar", "quantile"])
def test_it_is_no_language_model(conf, tmp_path, head):
    _, _, folder = saved(conf, tmp_path, head)
    for path in (folder, _without_description(folder, tmp_path / "plain") if head == "scalar" else folder):
        with pytest.raises(ConfigError, match="scores answers and writes none"):
            build_model(conf("hf", path=str(path)), dtype=torch.float32)


def _without_description(folder, target):
    """The artifact as a classifier that somebody else made."""
    target.mkdir()
    for name in ("config.json", "model.safetensors"):
        (target / name).write_bytes((folder / name).read_bytes())
    return target


def test_what_is_no_reward_model(conf, tmp_path):
    _, _, folder = saved(conf, tmp_path, "quantile")
    with pytest.raises(ConfigError, match="judges reward, not steps"):
        load_step_judge(folder, device=CPU)
    about = json.loads((folder / "reward.json").read_text())
    (folder / "reward.json").write_text(json.dumps(about | {"head": "other"}))
    with pytest.raises(ConfigError, match="no head 'other'"):
        load_judge(folder, device=CPU)
    (folder / "reward.json").unlink()
    with pytest.raises(ConfigError, match="is no reward model"):
        load_judge(folder, device=CPU)


def test_a_damaged_head_is_found(conf, tmp_path):
    _, _, folder = saved(conf, tmp_path, "branch")
    file = folder / "head" / "model.safetensors"
    os.truncate(file, file.stat().st_size - 4)
    with pytest.raises(ConfigError, match="does not match its checksum"):
        load_judge(folder, device=CPU)


def test_batches_do_not_change_scores(conf, tmp_path):
    model, head, _ = saved(conf, tmp_path)
    judge = Judge(model.base_model, head)
    torch.testing.assert_close(judge(sequences(), max_tokens=1).reward, judge(sequences()).reward, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="one sequence at least"):
        judge([])
