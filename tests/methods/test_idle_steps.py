"""Steps that teach nothing change nothing; and what a run was warned of survives in its checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posttrain.data.tree import collate
from posttrain.functional import advantages
from posttrain.functional.policy import clipped
from posttrain.methods.parts.online import KL
from posttrain.methods.parts.recipe import Recipe
from posttrain.methods.policy_gradient import PolicyGradient
from posttrain.rollout.plan import parts_of
from posttrain.runs.compose import compose
from posttrain.runs.job import run_job
from posttrain.types import Completion, Group, GroupRewards, Rollout, StepShare, TokenStats

RECIPE: Any = Recipe(policy=None, optimizer=None, scheduler=None, max_steps=4)  # type: ignore[arg-type]
LEVEL = [
    "method=grpo", "model=nano", "data=arithmetic", "evaluation=none", "tracking=none", "hardware=cpu", "limit=20", "global_batch=2",
    "max_steps=4", "rollout.group_size=2", "rollout.max_new_tokens=6", "validate.at_start=false", "validate.at_end=false",
    "optimizer.lr=1e-2", "optimizer.weight_decay=0.5", "scheduler=constant", "checkpoint.every_steps=1", "checkpoint.keep_last=9",
    "reward=[format]", "reward.format.right=0",
]  # fmt: skip
ALARM = "step 3: no variance"


def run(folder: Path, *overrides: str) -> None:
    assert run_job(compose([*LEVEL, *overrides, f"output_dir={folder}"])) == 0


def state(folder: Path, step: int) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "checkpoints" / f"step-{step:08d}" / "state.ckpt", weights_only=True)
    return found


def same_weights(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())


@pytest.fixture(scope="module")
def level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which all answers to every prompt have the same reward: its folder."""
    folder = tmp_path_factory.mktemp("level") / "run"
    run(folder)
    return folder


def test_a_step_without_an_advantage_leaves_weights_and_optimizer_as_they_are(level: Path, tmp_path: Path) -> None:
    states = [state(level, step) for step in (1, 2, 3, 4)]
    assert all(same_weights(states[0], other) for other in states[1:])
    assert not any(found["optimizer_states"][0]["state"] for found in states)
    run(tmp_path / "bonus", "method.entropy_coef=0.01", "max_steps=2")
    assert not same_weights(state(tmp_path / "bonus", 1), state(tmp_path / "bonus", 2))


@pytest.mark.parametrize("coef", [0.0, 0.5])
def test_a_pull_is_a_gradient_all_the_same(monkeypatch: Any, coef: float) -> None:
    """Rewards that differ by rounding alone have advantages of exactly 0, and then only the divergence has a gradient."""
    rewards = torch.tensor([[0.3, 0.1 + 0.2]], dtype=torch.float64)
    answer = Completion(np.array([5, 6], np.int32), np.array([-1.0, -2.0], np.float32), "stop")
    group = Group(0, np.arange(3, dtype=np.int32), (answer, answer))
    rollout = Rollout(0, (group,), GroupRewards(rewards, rewards[None], torch.ones(1)), np.ones((1, 2), bool))
    method = PolicyGradient(RECIPE, loss=clipped, advantage=advantages.leave_one_out, kl=KL(coef=coef))
    monkeypatch.setattr(method, "read", lambda parts: [{"reference": part.tree.weights * -3.0} for part in parts] if coef else [{}])
    (tree,) = method.annotate(rollout, parts_of(rollout, 64))
    assert not tree.columns["advantage"].any()
    batch = collate([tree], StepShare(4.0, 1, 1, sequences=2))
    logps = torch.full((4,), -1.0, requires_grad=True)
    loss, _ = method.policy_loss(batch, method.policy_tokens(batch, logps), TokenStats(logps, entropy=torch.zeros(4)))
    loss.backward()
    assert logps.grad is not None
    assert bool(logps.grad.any()) is bool(coef)


def test_a_run_that_goes_on_is_warned_as_one_that_never_stopped(level: Path, tmp_path: Path, caplog: Any) -> None:
    """Three rollouts without variance are told in the third step, also by a run that saw only the last of them, and once."""
    for step, warned in ((2, True), (3, False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            run(tmp_path / f"after-{step}", f"resume={level / 'checkpoints' / f'step-{step:08d}'}")
        assert any(ALARM in record.getMessage() for record in caplog.records) is warned
        assert sum("no variance" in record.getMessage() for record in caplog.records) == warned
