"""Policy gradients: what they make of a rollout, by hand."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from posttrain.data.tree import collate
from posttrain.functional import advantages
from posttrain.functional.policy import clipped
from posttrain.methods.base import Recipe
from posttrain.methods.parts.online import KL
from posttrain.methods.policy_gradient import PolicyGradient
from posttrain.methods.ppo import PPO
from posttrain.models.build import build_policy
from posttrain.models.policy import PolicyModel
from posttrain.models.tokenizers import load_tokenizer
from posttrain.rollout.plan import parts_of
from posttrain.runs.compose import compose
from posttrain.types import Completion, Group, GroupRewards, Rollout, StepShare

RECIPE: Any = Recipe(policy=None, optimizer=None, scheduler=None, max_steps=4)  # type: ignore[arg-type]
PULLED = KL(coef=0.5, estimator="k1", place="reward")
KINDS = {"policy gradient": partial(PolicyGradient, advantage=advantages.leave_one_out), "ppo": PPO}


def rollout_of(*parts: list[list[float]], weights: tuple[float, ...] = (1.0,)) -> Rollout:
    """Groups of answers of two tokens with the given rewards of each component."""
    raw, w = torch.tensor(parts, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)
    total = (raw * w[:, None, None]).sum(0)
    answer = Completion(np.array([5, 6], np.int32), np.array([-1.0, -2.0], np.float32), "stop")
    prompt = np.arange(3, dtype=np.int32)
    groups = tuple(Group(number, prompt, (answer,) * total.shape[1]) for number in range(len(total)))
    return Rollout(0, groups, GroupRewards(total, raw, w), ~total.isnan().numpy())


def columns_of(parts: Any) -> list[dict[str, np.ndarray]]:
    """Made-up log-probabilities and values of the parts' tokens."""
    rng = np.random.default_rng(1)

    def made(tree: Any) -> np.ndarray:
        return np.where(tree.weights > 0, rng.standard_normal(len(tree.ids)), 0.0).astype(np.float32)

    return [{name: made(part.tree) for name in ("old", "values", "reference")} for part in parts]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epochs", [1, 2])
def test_with_one_step_a_rollout_the_ratio_is_that_steps_own(monkeypatch: Any, kind: str, epochs: int) -> None:
    method: Any = KINDS[kind](RECIPE, loss=clipped, kl=PULLED, rollout_epochs=epochs)
    rollout = rollout_of([[1.0, 0.0], [0.0, 2.0]])
    parts = parts_of(rollout, 64)
    monkeypatch.setattr(method, "read", lambda _: columns_of(parts))
    assert [("old" in tree.columns) for tree in method.annotate(rollout, parts)] == [epochs > 1] * len(parts)


def test_training_leaves_dropout_out_whatever_the_mode(caplog: Any) -> None:
    model = compose(["model=nano", "model/peft=lora", "model.peft.dropout=0.5", "model.gradient_checkpointing=true"])["model"]

    def policy() -> PolicyModel:
        return build_policy(model, load_tokenizer(model), precision="float32", seed=0, device=torch.device("cpu"))

    method = PolicyGradient(replace(RECIPE, policy=policy), loss=clipped, advantage=advantages.group)
    with caplog.at_level(logging.WARNING):
        method.configure_model()
    assert "dropout" in caplog.text
    rollout = rollout_of([[1.0, 0.0]])
    (tree,) = method.annotate(rollout, parts_of(rollout, 64))
    batch = collate([tree], StepShare(4.0, 1, 1))
    dropped = [m for m in method.model.modules() if isinstance(m, torch.nn.Dropout) and m.p]
    for mode in (True, False, True):
        method.train(mode)
        assert method.training is mode
        assert not any(module.training for module in dropped)
        layers = [m for m in method.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        assert [layer.training for layer in layers] == [mode] * len(layers)
    first, again = (method.loss_of(batch)[0] for _ in range(2))
    assert torch.equal(first, again)
    first.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in method.model.parameters())
