"""Policy gradients: what they make of a rollout, by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from posttrain.functional import advantages
from posttrain.functional.policy import clipped
from posttrain.methods.base import Recipe
from posttrain.methods.parts.online import KL
from posttrain.methods.policy_gradient import PolicyGradient
from posttrain.methods.ppo import PPO
from posttrain.rollout.plan import parts_of
from posttrain.types import Completion, Group, GroupRewards, Rollout

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
