"""Layers cut over processes that share each micro-batch, and weights over those that do not, compute what one process computes."""

import preloaded
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from posttrain.models.architectures import model_config
from posttrain.models.tensor_parallel import FAMILIES, STYLES, obstacle
from posttrain.runs import shards
from posttrain.runs.check import check
from posttrain.runs.compose import compose
from posttrain.runs.job import run_job
from tests.distributed.test_sharded import ANSWERED, BASE, assert_same, rows

SFT = (
    *BASE,
    "method=sft",
    "data=arithmetic",
    "checkpoint.every_steps=2",
    "checkpoint.keep_last=9",
    "data.generator.held_out=8",
    *ANSWERED,
    "evaluation.exact_match.before=false",
)
CUT = ("hardware=2xcpu_fsdp", "hardware.devices=4", "hardware.tensor_parallel=2")  # two groups of two
FROM_TWO = ("checkpoint.every_steps=9", "validate.at_end=false", "evaluation.exact_match.after=false")


@pytest.fixture(scope="module", autouse=True)
def preloaded_ranks():
    """Before the folder is made: ranks that need not import anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("posttrain.runs.processes.start", preloaded.start)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory, preloaded_ranks):
    """The same run on one process in `1`, on four in `4`; in `resumed` four go on from their second step."""
    root = tmp_path_factory.mktemp("cut")
    assert run_job(compose([*SFT, "hardware=cpu", f"output_dir={root / '1'}"])) == 0
    assert run_job(compose([*SFT, *CUT, f"output_dir={root / '4'}"])) == 0
    at_two = root / "4" / "checkpoints" / "step-00000002"
    assert run_job(compose([*SFT, *CUT, *FROM_TWO, f"resume={at_two}", f"output_dir={root / 'resumed'}"])) == 0
    return root


def losses(folder):
    return [row for row in rows(folder) if "loss" in row]


def test_every_number_is_that_of_one_process(folder):
    assert_same(rows(folder / "4"), rows(folder / "1"))


def test_a_resumed_run_is_the_uninterrupted_one(folder):
    assert losses(folder / "resumed") == losses(folder / "4")[-1:]


def test_the_artifact_is_what_lies_on_the_ranks(folder):
    held = shards.load_whole(folder / "4" / "checkpoints" / "step-00000003" / "state.ckpt")["state_dict"]
    written = load_file(folder / "4" / "artifact" / "model.safetensors")
    assert all(torch.equal(tensor, held[f"policy.model.{name}"]) for name, tensor in written.items())
    models = [AutoModelForCausalLM.from_pretrained(folder / ranks / "artifact") for ranks in "14"]
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(*(model(ids).logits for model in models), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["hardware.devices=3"], "grouped by 2"),
        (["hardware.strategy=ddp"], "hardware.strategy=ddp"),
        (["method=dpo"], "only sft and pretrain"),
        (["model/peft=lora"], "adapters"),
        (["model.float8=rowwise"], "8-bit"),
        (["model.compile=true"], "compiled"),
    ],
)
def test_what_cannot_be_cut_is_refused(overrides, words):
    found = check(compose(["method=sft", "model=nano", "data=arithmetic", "max_steps=1", *CUT, *overrides]))
    assert any(problem.where == "hardware.tensor_parallel" and words in problem.message for problem in found)


def test_models_that_cannot_be_cut_are_refused():
    nano = model_config(compose(["method=sft", "model=nano"])["model"])
    assert obstacle(nano, 2) is None
    assert "num_key_value_heads" in obstacle(nano, 4)
    moe = model_config(compose(["method=sft", "model=nano_moe"])["model"])
    assert "qwen3_moe" in obstacle(moe, 2)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_plans_of_known_families_have_known_cuts(family):
    config = model_config({"weights": "random", "architecture": {"model_type": family}})
    assert set(config.base_model_tp_plan.values()) <= STYLES.keys()
