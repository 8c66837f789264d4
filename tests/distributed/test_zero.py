"""ZeRO by DeepSpeed on two processes computes what one computes, goes on from its checkpoints, and hands on what it holds."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from posttrain.runs import shards, zero_rules
from posttrain.runs.check import check
from posttrain.runs.compose import compose
from posttrain.runs.job import run_job
from tests.distributed.ranks import start_ranks
from tests.distributed.test_sharded import BASE, assert_same, rows
from tests.methods.test_idle_steps import LEVEL

SPLIT = ("method=sft", "data=arithmetic", "max_tokens=100", "max_length=90", "checkpoint.every_steps=2", "checkpoint.keep_last=9")
ON = {"2": ("hardware=2xcpu_zero2",), "3": ("hardware=2xcpu_zero3",)}
STEP_TWO = ("checkpoints", "step-00000002")
FROM_TWO = ("checkpoint.every_steps=9", "validate.at_end=false")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same run on one process in `sft/1`, under ZeRO over two in `sft/STAGE`; in `resumed` others go on from its second step."""
    root = tmp_path_factory.mktemp("zero")
    assert run_job(compose([*BASE, *SPLIT, "hardware=cpu", f"output_dir={root / 'sft' / '1'}"])) == 0
    runs = [[*BASE, *SPLIT, *ON[stage], f"output_dir={root / 'sft' / stage}"] for stage in ON]
    for before, stage in (("2", "2"), ("3", "3"), ("1", "3")):
        at_two = root.joinpath("sft", before, *STEP_TWO)
        runs.append([*BASE, *SPLIT, *ON[stage], *FROM_TWO, f"resume={at_two}", f"output_dir={root / 'resumed' / (before + stage)}"])
    runs += [[*LEVEL, *ON[stage], "max_steps=2", f"output_dir={root / 'level' / stage}"] for stage in ON]
    assert start_ranks(runs, root / "runs.json") == 0
    at_two = root.joinpath("sft", "3", *STEP_TWO)
    again = [*BASE, *SPLIT, *FROM_TWO, "hardware=cpu", f"resume={at_two}", f"output_dir={root / 'resumed' / '31'}"]
    assert run_job(compose(again)) == 0
    return root


def losses(folder):
    return [row for row in rows(folder) if "loss" in row]


@pytest.mark.parametrize("stage", ON)
def test_every_number_is_that_of_one_process(folder, stage):
    assert_same(rows(folder / "sft" / stage), rows(folder / "sft" / "1"))


@pytest.mark.parametrize("stage", ["2", "3"])
def test_a_resumed_run_is_the_uninterrupted_one(folder, stage):
    assert losses(folder / "resumed" / (stage * 2)) == losses(folder / "sft" / stage)[-1:]
    paths = (folder / name / "checkpoints" / "step-00000003" / "state.ckpt" for name in (f"sft/{stage}", f"resumed/{stage * 2}"))
    whole, again = (shards.split(shards.load_whole(path))[1] for path in paths)
    assert whole.keys() == again.keys()
    assert any(name.startswith("optimizer_states") for name in whole)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("name", ["13", "31"])
def test_checkpoints_pass_between_zero_and_one_process(folder, name):
    assert_same(losses(folder / "resumed" / name), losses(folder / "sft" / "1")[-1:])


def test_the_artifact_is_what_lies_on_the_ranks(folder):
    held = shards.load_whole(folder / "sft" / "3" / "checkpoints" / "step-00000003" / "state.ckpt")["state_dict"]
    written = load_file(folder / "sft" / "3" / "artifact" / "model.safetensors")
    assert all(torch.equal(tensor, held[f"policy.model.{name}"]) for name, tensor in written.items())
    models = [AutoModelForCausalLM.from_pretrained(folder / "sft" / ranks / "artifact") for ranks in "13"]
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(*(model(ids).logits for model in models), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", ON)
def test_a_step_without_a_gradient_moves_nothing(folder, stage):
    """All answers have the same reward: without ZeRO neither weights nor moments nor the count of steps change, and decay does nothing."""
    states = [shards.load_whole(folder / "level" / stage / "checkpoints" / f"step-{step:08d}" / "state.ckpt") for step in (1, 2)]
    assert [row["grad_norm"] for row in losses(folder / "level" / stage)] == [0.0, 0.0]
    weights = [state["state_dict"] for state in states]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert not any(state["optimizer_states"][0]["state"] for state in states)


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("model/peft=qlora", "hardware.strategy"),
        ("optimizer=adafactor", "hardware.strategy"),
        ("precision=bf16_true", "precision"),
        ("model.compile=true", "model.compile"),
        ("hardware.devices=1", "hardware.strategy"),
    ],
)
def test_what_cannot_be_cut_is_refused(override, where):
    found = check(compose(["method=sft", "model=nano", "data=arithmetic", "max_steps=1", *ON["3"], override]))
    assert where in {problem.where for problem in found}


def test_without_deepspeed_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(zero_rules, "find_spec", lambda name: None)
    (found,) = check(compose(["method=sft", "model=nano", "data=arithmetic", "max_steps=1", *ON["2"]]))
    assert "pip install 'posttrain[deepspeed]'" in found.hint
