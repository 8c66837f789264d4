"""Reward models: their curves do not depend on how a step is computed, they learn, and their artifacts are what was trained."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from posttrain.evaluation.reward import load_process_reward_model, load_reward_model
from posttrain.runs.compose import compose
from posttrain.runs.job import run_job
from tests.tiers import mostly_slow

PAIRS = ("method=reward_model", "data=arithmetic_pairs")
CASES = {
    "pairs": (*PAIRS, "method.loss.centre=0.01"),
    "branch": (*PAIRS, "method.head=branch", "method.head.width=16"),
    "quantiles": ("method=rating_model", "data=arithmetic_ratings", "method.head=quantile", "method.loss=pinball"),
    "steps": ("method=process_reward_model", "data=arithmetic_steps"),
}
SAME = {
    "many micro-batches": ("max_tokens=128", "max_length=128"),
    "two ranks": ("hardware=2xcpu",),
    "prompts repeated": ("model.layout=packed",),
    "padded": ("model.layout=padded",),
}
# every way with pairs, and the ways that differ in kind with the others
PAIRED = [("pairs", name) for name in SAME] + [(case, "many micro-batches") for case in ("branch", "quantiles", "steps")]
PAIRED += [("branch", "two ranks"), ("steps", "two ranks")]


def assert_same(ours, theirs):
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            # margins and the calibration error are differences of rewards near one: their rounding is that of the rewards; a gradient
            # follows from weights that steps of Adam have moved apart, where small ones are nearly all rounding
            near = 5e-5 if name == "grad_norm" else 1e-5
            assert math.isclose(a[name], b[name], rel_tol=near, abs_tol=3e-6), (a["step"], name, a[name], b[name])


@pytest.mark.parametrize(("case", "name"), PAIRED)
def test_the_curve_does_not_depend_on_the_split_or_the_layout(curve, case, name):
    assert_same(curve(*CASES[case], *SAME[name]), curve(*CASES[case]))


@pytest.mark.parametrize("case", mostly_slow(["branch", "quantiles", "steps"], but=["steps"]))
def test_a_rank_without_work_in_a_step_is_no_harm(curve, case):
    few = ("global_batch=3", "limit=7", "max_steps=3", "validate.every_steps=null")
    runs = (curve(*CASES[case], *few, *more) for more in (("hardware=2xcpu", "max_tokens=128", "max_length=128"), ()))
    for ours, theirs in zip(*runs, strict=True):  # three examples: Adam makes much of the rounding of gradients near zero
        assert [ours[name] for name in ours if "loss" in name] == pytest.approx(
            [theirs[name] for name in theirs if "loss" in name], rel=1e-3
        )


def test_it_starts_at_ln2_with_a_head_that_says_nothing(curve):
    # a branch head with both shares at zero says zero
    first = curve(*PAIRS, "method.head=branch", "method.head.attribute_share=0", "method.head.recurrent_share=0")[0]
    assert first["val/loss"] == pytest.approx(math.log(2))
    assert first["val/accuracy"] == 0.5
    assert first["val/ece"] == pytest.approx(0.0, abs=1e-12)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A reward model of forty steps: its folder."""
    folder = tmp_path_factory.mktemp("reward") / "run"
    line = [
        *PAIRS,
        "model=nano",
        "tracking=none",
        "hardware=cpu",
        "limit=900",
        "global_batch=16",
        "max_steps=40",
        "data.generator.held_out=200",
    ]
    assert run_job(compose([*line, f"output_dir={folder}"])) == 0
    return folder


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_to_prefer(trained):
    rows = [row for row in rows_of(trained) if "val/accuracy" in row]
    assert rows[-1]["val/accuracy"] > 0.95
    assert rows[-1]["val/loss"] < 0.1 * rows[0]["val/loss"]
    assert rows[-1]["val/margin"] > 2


def test_the_report_lies_in_the_folder(trained):
    report = json.loads((trained / "report.json").read_text())
    last = rows_of(trained)[-1]
    assert report["pairs"] == 200
    assert report["accuracy"] == pytest.approx(last["val/accuracy"])
    assert report["ece"] == pytest.approx(last["val/ece"])
    assert sum(report["margin"]["counts"]) == sum(row["pairs"] for row in report["reliability"]) == 200
    assert report["length_bias"]["reward"] > 0.5  # here the worked answer is the longer one
    assert (trained / "report.png").read_bytes().startswith(b"\x89PNG")


CONVERSATIONS = [
    [{"role": "user", "content": "12+30=?"}, {"role": "assistant", "content": text}]
    for text in ("2+0+0=2\n1+3+0=4\n#### 42", "#### 42", "2+0+0=2\n#### 42")
]


def test_plain_transformers_scores_the_same(trained):
    scores = load_reward_model(trained / "artifact")(CONVERSATIONS)
    assert scores[0] > scores[1] + 2
    model = AutoModelForSequenceClassification.from_pretrained(trained / "artifact")
    tokenizer = AutoTokenizer.from_pretrained(trained / "artifact")
    texts = [tokenizer.apply_chat_template(conversation, tokenize=False).rstrip() for conversation in CONVERSATIONS]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    with torch.no_grad():
        np.testing.assert_allclose(model(**batch).logits[:, 0], scores, rtol=1e-6, atol=1e-6)


def test_the_run_and_its_artifact_agree(trained):
    """Accuracy on the run's own held-out pairs, by the artifact."""
    from posttrain.data.arithmetic import pairs

    rows = list(pairs("val", held_out=200))[:60]
    asked = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    both = [
        [*ask, {"role": "assistant", "content": row[key]}] for ask, row in zip(asked, rows, strict=True) for key in ("chosen", "rejected")
    ]
    margins = load_reward_model(trained / "artifact")(both).view(-1, 2).diff(dim=1)
    assert float((margins < 0).float().mean()) > 0.9


@pytest.mark.parametrize("method", ["reward_model", "process_reward_model"])
def test_an_artifact_renders_as_its_training_did(tmp_path, method):
    """Its system message and the template's arguments travel with it, unless the caller says otherwise."""
    config = compose([
        f"method={method}", "model=nano", "tracking=none", "hardware=cpu", "limit=40", "global_batch=4", "max_steps=1",
        "validate.at_start=false", "validate.at_end=false", "data.system=Be strict.", "data.template_kwargs={enable_thinking:true}",
        f"output_dir={tmp_path}/run",
    ])  # fmt: skip
    if method == "process_reward_model":
        config["data"]["format_options"] = {"separator": " / "}
    assert run_job(config) == 0
    folder = tmp_path / "run" / "artifact"
    stated = json.loads((folder / "reward.json").read_text())["rendering"]
    separator = " / " if method == "process_reward_model" else "\n"
    assert stated == {"system": "Be strict.", "template_kwargs": {"enable_thinking": True}, "separator": separator}
    if method == "process_reward_model":
        score, other = load_process_reward_model(folder), load_process_reward_model(folder, system="", template_kwargs={})
        asked, steps = [{"role": "user", "content": "1+1=?"}], ["1+1=2", "2+0=2"]
        assert torch.equal(score(asked, steps), other([{"role": "system", "content": "Be strict."}, *asked], steps))
        assert not torch.equal(score(asked, steps), other(asked, steps))
        assert not torch.equal(score(asked, steps), score(asked, steps, separator="\n"))
        return
    score, other = load_reward_model(folder), load_reward_model(folder, system="", template_kwargs={})
    strict = [[{"role": "system", "content": "Be strict."}, *conversation] for conversation in CONVERSATIONS]
    assert torch.equal(score(CONVERSATIONS), other(strict))
    assert torch.equal(score(CONVERSATIONS), score(strict))  # a conversation's own message stays
    assert not torch.equal(score(CONVERSATIONS), other(CONVERSATIONS))
    assert score.chat.kwargs == {"enable_thinking": True}
    assert other.chat.kwargs == {}


@pytest.mark.parametrize(
    "more", [CASES["branch"], (*CASES["branch"], "model/peft=lora"), CASES["quantiles"]], ids=["full", "lora", "quantiles"]
)
def test_a_resumed_run_is_an_uninterrupted_one(tmp_path, more):
    line = [*more, "model=nano", "tracking=none", "hardware=cpu", "limit=60", "global_batch=4", "scheduler=constant"]
    line += ["validate.max_examples=16"]
    for name, stages in {"whole": (6,), "parts": (3, 6)}.items():
        for steps in stages:
            keep = ["validate.at_end=false"] if steps == 3 else []
            assert run_job(compose([*line, *keep, f"max_steps={steps}", f"output_dir={tmp_path / name}"])) == 0
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert (whole / "metrics.jsonl").read_bytes() == (parts / "metrics.jsonl").read_bytes()
    for file in (whole / "artifact").rglob("*.safetensors"):
        assert file.read_bytes() == (parts / "artifact" / file.relative_to(whole / "artifact")).read_bytes()


def test_adapters_and_head_are_trained_together(tmp_path):
    folder = tmp_path / "run"
    line = [*PAIRS, "model=nano", "model/peft=lora", "tracking=none", "hardware=cpu", "limit=300", "global_batch=16", "max_steps=25"]
    assert run_job(compose([*line, "optimizer.lr=3e-3", "validate.max_examples=100", f"output_dir={folder}"])) == 0
    assert rows_of(folder)[-1]["val/accuracy"] > 0.9
    assert (folder / "artifact" / "adapter" / "adapter_model.safetensors").is_file()
    scores = load_reward_model(folder / "artifact")(CONVERSATIONS)
    assert scores[0] > scores[1]


@pytest.mark.slow
def test_steps_are_told_apart(tmp_path):
    folder = tmp_path / "run"
    # gross mistakes are seen in a few steps; the default ones take some hundred
    line = ["method=process_reward_model", "model=nano", "tracking=none", "hardware=cpu", "global_batch=32", "max_steps=80"]
    line += ["data.generator.slip=200", "data.generator.train=2600", "data.generator.held_out=100", "optimizer.lr=2e-3"]
    assert run_job(compose([*line, f"output_dir={folder}"])) == 0
    last = [row for row in rows_of(folder) if "val/accuracy" in row][-1]
    assert last["val/accuracy"] > last["val/base_rate"] + 0.1
    assert (folder / "report.png").is_file()
    judge = load_process_reward_model(folder / "artifact")
    right, wrong = (judge([{"role": "user", "content": "12+30=?"}], steps) for steps in (["2+0+0=2", "1+3+0=4"], ["2+0+0=302", "1+3+0=4"]))
    assert right.shape == (2,)
    assert right[0] > wrong[0]


def test_rated_attributes_reach_the_branch_head(tmp_path):
    """CodeUltraFeedback's rows: each rates one attribute, and only what is rated is learnt from ratings."""
    rows = [
        {
            "instruction": f"Task {number}", "preference": ("readability", "complexity")[number % 2],
            "responses": [{"response": f"good {number}"}, {"response": f"bad {number}"}],
            "annotations": [{"rating": "5"}, {"rating": "N/A" if number == 7 else "1"}],
        }
        for number in range(48)
    ]  # fmt: skip
    (tmp_path / "cuf.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "run"
    line = ["method=reward_model", "data=files", f"data.train={tmp_path / 'cuf.jsonl'}", "method.head=branch", "method.head.width=16"]
    line += ["data.val_fraction=0.1", "model=nano", "tracking=none", "hardware=cpu", "global_batch=8", "max_steps=40"]
    assert run_job(compose([*line, f"output_dir={folder}"])) == 0
    score = load_reward_model(folder / "artifact")
    said = [[{"role": "user", "content": "Task 2"}, {"role": "assistant", "content": text}] for text in ("good 2", "bad 2")]
    good, bad = score.judge(said).attributes
    efficiency, readability = 1, 2  # in data.attributes
    assert all(good[place] > bad[place] + 0.3 for place in (efficiency, readability))
    assert score(said)[0] > score(said)[1]
