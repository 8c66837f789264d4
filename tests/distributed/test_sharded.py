"""FSDP2 on two processes computes what one computes, resumes bit for bit, and hands on what it holds."""

import json
import math
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from posttrain.runs import shards
from posttrain.runs.compose import compose
from posttrain.runs.job import run_job
from posttrain.runs.processes import run_ranks
from posttrain.runs.strategies import rule

BASE = ("model=nano", "tracking=none", "evaluation=none", "limit=24", "global_batch=4", "max_steps=3", "max_tokens=160", "max_length=96")
PAIRS = ("data=arithmetic_pairs", "max_tokens=320")
SAMPLED = (
    "rollout.max_new_tokens=8", "rollout.group_size=4", "reward=length", "reward.length.unit=characters", "reward.length.target=8",
    "reward.length.under=1.0", "optimizer.lr=1e-3", "validate.at_start=false", "max_length=32",
)  # fmt: skip
ANSWERED = ("evaluation=default", "evaluation.exact_match.examples=3", "evaluation.exact_match.max_new_tokens=6")
CASES = {
    "sft": ("method=sft", "data=arithmetic", "checkpoint.every_steps=2", "checkpoint.keep_last=9", *ANSWERED),
    "dpo with a copy that moves": ("method=dpo", *PAIRS, "method.reference_update_every=1", "max_steps=2"),
    "grpo": ("method=grpo", *SAMPLED, "method.kl.coef=0.1", "method.minibatches=2", "max_steps=4"),
    "reward model": ("method=reward_model", *PAIRS, "max_steps=2"),
    "ppo": ("method=ppo", *SAMPLED, "method.rollout_epochs=2", "max_steps=2"),
    "kto": ("method=kto", *PAIRS, "max_steps=2"),
    "lora": ("method=sft", "data=arithmetic", "model/peft=lora", "max_steps=2"),
}
FROM_TWO = ("checkpoint.every_steps=9", "validate.at_end=false", "evaluation.exact_match.after=false")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every case on one process in `NAME/1`, and sharded over two in `NAME/2`; sft goes on from both in `resumed`."""
    root = tmp_path_factory.mktemp("sharded")
    for name, overrides in CASES.items():
        assert run_job(compose([*BASE, *overrides, "hardware=cpu", f"output_dir={root / name / '1'}"])) == 0
    sharded = [[*BASE, *overrides, "hardware=2xcpu_fsdp", f"output_dir={root / name / '2'}"] for name, overrides in CASES.items()]
    sharded.append([*BASE, "method=sft", "data=arithmetic", "model.float8=rowwise", "hardware=2xcpu_fsdp", f"output_dir={root / 'float8'}"])
    for ranks in "12":
        at_two = root / "sft" / ranks / "checkpoints" / "step-00000002"
        sharded.append([*sharded[0][:-1], *FROM_TWO, f"resume={at_two}", f"output_dir={root / 'resumed' / ranks}"])
    (root / "runs.json").write_text(json.dumps(sharded))
    assert run_ranks([sys.executable, "-m", "tests.distributed.ranks", str(root / "runs.json")], 2) == 0
    again = [*BASE, *CASES["sft"], *FROM_TWO, "hardware=cpu"]
    at_two = root / "sft" / "2" / "checkpoints" / "step-00000002"
    assert run_job(compose([*again, f"resume={at_two}", f"output_dir={root / 'resumed' / 'alone'}"])) == 0
    return root


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert math.isclose(one[name], other[name], rel_tol=1e-5, abs_tol=2e-6), (one["step"], name, one[name], other[name])


@pytest.mark.parametrize("case", CASES)
def test_every_number_is_that_of_one_process(folder, case):
    assert_same(rows(folder / case / "2"), rows(folder / case / "1"))


def test_a_resumed_run_is_the_uninterrupted_one(folder):
    last = [row for row in rows(folder / "sft" / "2") if row["step"] == 3 and "loss" in row]
    assert [row for row in rows(folder / "resumed" / "2") if "loss" in row] == last
    (whole, again) = (shards.load_whole(folder / name / "checkpoints" / "step-00000003" / "state.ckpt") for name in ("sft/2", "resumed/2"))
    for kind in ("state_dict", "optimizer_states"):
        one, other = (
            {name: tensor for name, tensor in shards.split(state)[1].items() if name.startswith(kind)} for state in (whole, again)
        )
        assert one
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_checkpoints_pass_between_shards_and_whole_weights(folder):
    last = [row for row in rows(folder / "sft" / "1") if row["step"] == 3 and "loss" in row]
    for name in ("1", "alone"):
        assert_same([row for row in rows(folder / "resumed" / name) if "loss" in row], last)


def test_the_artifact_is_what_lies_on_the_ranks(folder):
    held = shards.load_whole(folder / "sft" / "2" / "checkpoints" / "step-00000003" / "state.ckpt")["state_dict"]
    written = load_file(folder / "sft" / "2" / "artifact" / "model.safetensors")
    assert all(torch.equal(tensor, held[f"policy.model.{name}"]) for name, tensor in written.items())
    models = [AutoModelForCausalLM.from_pretrained(folder / "sft" / ranks / "artifact") for ranks in "12"]
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(*(model(ids).logits for model in models), rtol=1e-4, atol=1e-5)


def test_products_in_8_bits_are_sharded_too(folder):
    """Over the float32 weights, near what these give; the shards are handed on as they are."""
    ours, exact = ([row["loss"] for row in rows(folder / name) if "loss" in row] for name in ("float8", "sft/1"))
    assert ours != exact
    assert ours == pytest.approx(exact, rel=5e-3)
    assert (folder / "float8" / "artifact" / "model.safetensors").is_file()


@pytest.mark.parametrize("case", ["reward model", "ppo", "lora"])
def test_heads_and_adapters_are_handed_on(folder, case):
    ours, theirs = (sorted((folder / case / ranks / "artifact").rglob("*.safetensors")) for ranks in "21")
    assert ours
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(load_file(one), load_file(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "weights", "expected"),
    [
        (("hardware=1xa100",), 70e9, "single"),
        (("hardware=8xa100",), 1e9, "ddp"),
        (("hardware=8xa100",), 8e9, "fsdp2"),
        (("hardware=8xa100", "model/peft=qlora"), 8e9, "ddp"),
        (("hardware=2xcpu",), 8e9, "ddp"),
        (("hardware=8xa100", "hardware.strategy=ddp"), 8e9, "ddp"),
        (("hardware=8xa100", "method=dpo"), 2.7e9, "fsdp2"),
        (("hardware=8xa100", "method=sft"), 2.7e9, "ddp"),
    ],
)
def test_the_automatic_strategy(overrides, weights, expected):
    config = compose(["method=sft", "model=nano", *overrides])
    choice = rule.pick(config, lambda _: rule.Weights(int(weights), int(weights)))
    assert choice.name == expected
    assert choice.why
