"""FSDP2 on two processes computes what one computes, resumes bit for bit, and hands on what it holds."""

import json
import math
import shutil
from datetime import timedelta

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from posttrain.errors import ConfigError
from posttrain.runs import checkpoint, shards
from posttrain.runs.compose import compose
from posttrain.runs.config_yaml import as_yaml
from posttrain.runs.job import run_job
from posttrain.runs.resume import open_folder
from posttrain.runs.strategies import distribution_of, rule
from tests.distributed.ranks import start_ranks

BASE = ("model=nano", "tracking=none", "evaluation=none", "limit=24", "global_batch=4", "max_steps=3", "max_tokens=160", "max_length=96")
ANSWERED = ("evaluation=default", "evaluation.exact_match.examples=3", "evaluation.exact_match.max_new_tokens=6")
SFT = ("method=sft", "data=arithmetic", "checkpoint.every_steps=2", "checkpoint.keep_last=9", *ANSWERED)
ONLINE = (
    *BASE, "method=grpo", "data=arithmetic", "reward=length", "rollout=transformers", "rollout.group_size=2", "rollout.max_new_tokens=5",
    "global_batch=1", "max_steps=2", "validate.at_start=false", "validate.at_end=false",
)  # fmt: skip
FROM_TWO = ("checkpoint.every_steps=9", "validate.at_end=false", "evaluation.exact_match.after=false")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same run on one process in `sft/1` and sharded over two in `sft/2`; in `resumed` others go on from both."""
    root = tmp_path_factory.mktemp("sharded")
    assert run_job(compose([*BASE, *SFT, "hardware=cpu", f"output_dir={root / 'sft' / '1'}"])) == 0
    line = [*BASE, *SFT, "hardware=2xcpu_fsdp"]
    float8 = [*BASE, "method=sft", "data=arithmetic", "model.float8=rowwise", "hardware=2xcpu_fsdp", f"output_dir={root / 'float8'}"]
    sharded = [[*line, f"output_dir={root / 'sft' / '2'}"], float8]
    sharded.append([*ONLINE, "hardware=2xcpu_fsdp", f"output_dir={root / 'online' / '2'}"])
    for ranks in "12":
        at_two = root / "sft" / ranks / "checkpoints" / "step-00000002"
        sharded.append([*line, *FROM_TWO, f"resume={at_two}", f"output_dir={root / 'resumed' / ranks}"])
    assert start_ranks(sharded, root / "runs.json") == 0
    assert run_job(compose([*ONLINE, "hardware=cpu", f"output_dir={root / 'online' / '1'}"])) == 0
    again = [*BASE, *SFT, *FROM_TWO, "hardware=cpu"]
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


def test_every_number_is_that_of_one_process(folder):
    assert_same(rows(folder / "sft" / "2"), rows(folder / "sft" / "1"))


def test_a_rank_without_a_prompt_does_not_wait_for_answers(folder):
    """transformers' `generate` would have a sharded model's ranks take as many steps, of which a rank without prompts takes none."""
    seconds = ("seconds/", "tokens_per_second")
    ours, theirs = (
        [{name: value for name, value in row.items() if not name.startswith(seconds)} for row in rows(folder / "online" / ranks)]
        for ranks in "21"
    )
    assert_same(ours, theirs)


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


@pytest.mark.parametrize("name", ["__1_0.distcp", ".metadata", "rest.pt"])
def test_a_shard_whose_contents_changed_is_named(folder, tmp_path, name):
    """Of the right size, with numbers that nobody has written: what ranks read of it would train on."""
    run = tmp_path / "run"
    shutil.copytree(folder / "sft" / "2", run)
    (run / "result.json").unlink()
    config = compose([*BASE, *SFT, "hardware=2xcpu_fsdp", f"output_dir={run}"])
    (run / "config.yaml").write_text(as_yaml(config))
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None
    assert newest.corruption == ""
    content = bytearray((newest.state / name).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4] = bytes(255 - byte for byte in content[middle : middle + 4])
    (newest.state / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"step-00000003 is damaged: {name} has other contents than were written"):
        open_folder(config, run)
    shutil.rmtree(newest.path)
    assert open_folder(config, run).step == 2


@pytest.mark.parametrize("hardware", ["2xcpu", "2xcpu_fsdp", "2xcpu_zero2", "2xcpu_zero3"])
def test_ranks_wait_while_the_leading_one_writes_a_large_artifact(hardware):
    strategy = distribution_of(compose([*BASE, *SFT, f"hardware={hardware}"])).strategy
    assert strategy._timeout >= timedelta(hours=6)


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
