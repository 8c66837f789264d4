"""Online runs continued from a checkpoint, also in the middle of a rollout's epochs, equal those that never stopped, bit for bit."""

import json

import pytest

from posttrain.runs.compose import compose
from posttrain.runs.job import run_job
from tests.tiers import mostly_slow

BASE = [
    "method=grpo", "model=nano", "data=arithmetic", "evaluation=none", "tracking=none", "hardware=cpu", "limit=60", "global_batch=4",
    "max_steps=8", "checkpoint.every_steps=1", "checkpoint.keep_last=20", "validate.at_start=false", "optimizer.lr=1e-3", "data.generator.held_out=24",
    "rollout.max_new_tokens=10", "rollout.group_size=4", "reward=[language]", "reward.language.scripts=[han]",
]  # fmt: skip
KINDS = {
    "one step a rollout": [],
    "four steps a rollout": ["method.minibatches=2", "method.rollout_epochs=2", "method.kl.coef=0.1"],
    "a moving reference": ["method.minibatches=2", "method.kl.coef=0.1", "method.reference_update_every=2"],
    "asked anew": ["method.selection=resample", "rollout.group_size=2", "method.minibatches=2"],
    "passed over": ["method.difficulty_low=0.1", "limit=8"],
}
# every place within a rollout's steps, and beyond the first step of the reference and of the next rollout
PLACES = [("four steps a rollout", step) for step in (1, 2, 3, 4)] + [("a moving reference", step) for step in (1, 2, 3)]
PLACES += [("asked anew", 1), ("asked anew", 2), ("one step a rollout", 1), ("passed over", 1), ("passed over", 3)]


def train(folder, *overrides):
    assert run_job(compose([*BASE, *overrides, f"output_dir={folder}"])) == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return rows, (folder / "artifact" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("kind", "step"), mostly_slow(PLACES, but=[place for place in PLACES if place[0] in ("four steps a rollout", "asked anew")])
)
def test_continuing_is_never_having_stopped(tmp_path_factory, tmp_path, kind, step):
    whole = tmp_path_factory.getbasetemp() / f"whole-{kind.replace(' ', '-')}"
    rows, weights = train(whole, *KINDS[kind]) if not whole.exists() else read(whole)
    (checkpoint,) = whole.glob(f"checkpoints/*step*{step}")
    again, same = train(tmp_path / "again", *KINDS[kind], f"resume={checkpoint}")
    assert again == [row for row in rows if row["step"] > step]
    assert same == weights


def read(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return rows, (folder / "artifact" / "model.safetensors").read_bytes()
