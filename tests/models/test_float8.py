"""8-bit products in the blocks: what is converted, how near they are to float32, and that nothing but weights leaves a run."""

from __future__ import annotations

import builtins
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from posttrain.errors import ConfigError, MissingExtra
from posttrain.models.float8 import to_float8
from posttrain.models.loading import build_model
from posttrain.models.quantisation import block_linears
from posttrain.runs import float8_rules, preflight
from posttrain.runs.check import check
from posttrain.runs.compose import compose
from posttrain.runs.job import run_job

pytest.importorskip("torchao")
RUN = [
    "method=sft", "model=nano", "data=arithmetic", "hardware=cpu", "evaluation=none", "tracking=none", "limit=24", "global_batch=4",
    "max_steps=3", "max_tokens=160", "max_length=96", "data.generator.held_out=8", "checkpoint.every_steps=2", "checkpoint.keep_last=9",
]  # fmt: skip
RECIPES = ("tensorwise", "rowwise")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three steps in float32 and by each recipe; `resumed` takes the third step of rowwise again, from its second."""
    root = tmp_path_factory.mktemp("float8")
    for name in ("null", *RECIPES):
        assert run_job(compose([*RUN, f"model.float8={name}", f"output_dir={root / name}"])) == 0
    at_two = root / "rowwise" / "checkpoints" / "step-00000002"
    assert run_job(compose([*RUN, "model.float8=rowwise", f"resume={at_two}", f"output_dir={root / 'resumed'}"])) == 0
    return root


def losses(folder):
    return [row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in row]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_follows_float32(root, recipe):
    ours, exact = ([row["loss"] for row in losses(root / name)] for name in (recipe, "null"))
    assert ours != exact
    assert ours == pytest.approx(exact, rel=5e-3)
    assert ours[-1] < ours[0] - 0.5


def test_a_resumed_run_is_the_uninterrupted_one(root):
    assert losses(root / "resumed") == losses(root / "rowwise")[-1:]
    ours, theirs = (load_file(root / name / "artifact" / "model.safetensors") for name in ("resumed", "rowwise"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_artifact_is_plain_weights(root, recipe):
    ours, exact = (load_file(root / name / "artifact" / "model.safetensors") for name in (recipe, "null"))
    assert {name: (value.shape, value.dtype) for name, value in ours.items()} == {
        name: (value.shape, value.dtype) for name, value in exact.items()
    }
    configs = [json.loads((root / name / "artifact" / "config.json").read_text()) for name in (recipe, "null")]
    assert configs[0] == configs[1]
    model = AutoModelForCausalLM.from_pretrained(root / recipe / "artifact")
    assert all(type(model.get_submodule(name)) is torch.nn.Linear for name in block_linears(model))


def test_only_fitting_layers_of_the_blocks_are_converted(conf, caplog):
    sizes = {**conf("nano")["architecture"], "intermediate_size": 488}
    model = to_float8(build_model(conf("nano", architecture=sizes), dtype=torch.float32), "rowwise", emulate=True)
    kinds = {name: type(model.get_submodule(name)).__name__ for name in block_linears(model)}
    assert {name for name, kind in kinds.items() if kind == "Linear"} == {name for name in kinds if ".mlp." in name}
    assert set(kinds.values()) == {"Linear", "Float8Linear"}
    assert type(model.lm_head) is torch.nn.Linear
    (told,) = [record.message for record in caplog.records if "no multiple of 16" in record.message]
    assert told.startswith("12 linear layers")
    with pytest.raises(ConfigError, match="no linear layer"):
        to_float8(build_model(conf("nano", architecture={**sizes, "hidden_size": 120}), dtype=torch.float32), "rowwise", emulate=True)


@pytest.mark.parametrize(
    ("overrides", "where", "words"),
    [
        (["model/peft=qlora"], "model.float8", "kernels of their own"),
        (["precision=bf16"], "precision", "emulation"),
        (["hardware=1xh100", "precision=float32"], "precision", "bfloat16"),
        (["hardware=1xa100"], "model.float8", "compute capability 8.0"),
        (["hardware=2xcpu_zero3"], "model.float8", "zero3"),
        (["method=grpo", "reward=length"], "model.float8", "sampler"),
        (["method=dpo", "method.reference=cached"], "model.float8", "cached"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides, where, words):
    found = check(compose(["method=sft", "model=nano", "data=arithmetic", "hardware=cpu", "model.float8=rowwise", *overrides]))
    assert any(problem.where == where and words in problem.message for problem in found)


def test_an_old_device_is_refused_before_training(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old one")
    job = SimpleNamespace(config={"model": {"float8": "rowwise"}}, device=torch.device("cuda", 0))
    (found,) = preflight.float8(preflight.Subject(job, None))
    assert found.stops
    assert "an old one has compute capability 8.6" in found.problem.message


def test_without_torchao_the_extra_is_named(conf, monkeypatch):
    monkeypatch.setattr(float8_rules, "find_spec", lambda name: None)
    (found,) = check(compose(["method=sft", "model=nano", "data=arithmetic", "max_steps=1", "hardware=cpu", "model.float8=rowwise"]))
    assert "pip install 'posttrain[quant]'" in found.hint
    usual = builtins.__import__

    def missing(name, *rest, **keys):
        if name.startswith("torchao"):
            raise ModuleNotFoundError(name)
        return usual(name, *rest, **keys)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtra, match="quant"):
        to_float8(build_model(conf("nano"), dtype=torch.float32), "rowwise", emulate=True)
