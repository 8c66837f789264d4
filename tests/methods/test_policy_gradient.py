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
from posttrain.methods.parts.online import KL
from posttrain.methods.parts.recipe import Recipe
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


def informative(advantage: Any, rewards: GroupRewards) -> list[bool]:
    rollout = Rollout(0, (), rewards, ~np.isnan(rewards.total.numpy()))
    return list(PolicyGradient(RECIPE, loss=clipped, advantage=advantage).informative(rollout))


def test_a_group_informs_where_its_advantages_are_not_zero() -> None:
    singles = rollout_of([[1.0], [0.0], [3.0]]).rewards
    assert informative(advantages.reinforce_plus_plus, singles) == [True] * 3
    assert informative(advantages.group, singles) == [False] * 3
    assert informative(advantages.raw, singles) == [True, False, True]
    # equal totals of components that differ, and a group that is all alike
    opposite = rollout_of([[1.0, 0.0], [0.1, 0.1]], [[0.0, 1.0], [0.1, 0.1]], weights=(1.0, 2.0)).rewards
    level = replace(opposite, total=torch.ones(2, 2, dtype=torch.float64))
    assert informative(advantages.decoupled, level) == [True, False]
    assert informative(advantages.group, level) == [False, False]
    alike = rollout_of([[0.1, 0.1, 0.1], [0.7, 0.7, 0.7]]).rewards  # whose means are not exact
    assert informative(advantages.group, alike) == informative(advantages.leave_one_out, alike) == [False, False]


def test_answers_that_are_left_out_have_neither_total_nor_components() -> None:
    rewards = rollout_of([[1.0, 0.0, 0.0]]).rewards
    known = advantages.only(rewards, torch.tensor([[False, True, True]]))
    assert known.total.isnan().tolist() == [[True, False, False]]
    assert known.parts.isnan().tolist() == [[[True, False, False]]]
    for advantage in (advantages.group, advantages.decoupled):
        assert (informative(advantage, rewards), informative(advantage, known)) == ([True], [False])


def test_answers_that_are_cut_off_are_compared_with_though_not_learnt_from(monkeypatch: Any) -> None:
    """One right answer that ended beside three wrong ones that did not: it is better than they are (DAPO, section 3.4)."""
    kept = np.array([[True, False, False, False], [False] * 4])
    rollout = replace(rollout_of([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]]), kept=kept)
    method: Any = PolicyGradient(RECIPE, loss=clipped, advantage=advantages.group)
    parts = parts_of(rollout, 64)
    monkeypatch.setattr(method, "read", lambda _: columns_of(parts))
    (tree,) = method.annotate(rollout, parts)
    prompt = int(tree.segment_lengths[0])
    np.testing.assert_allclose(tree.columns["advantage"][prompt:], 0.75 / 0.5, rtol=1e-3)  # the deviation of 1, 0, 0, 0 is 0.5
    assert method.informative(rollout).tolist() == [True, False]
    seen = []
    method.advantage = lambda rewards: (seen.append(rewards.total), advantages.reinforce_plus_plus(rewards))[1]
    method.annotate(rollout, parts)
    assert seen[0].isnan().tolist() == [[False] * 4, [True] * 4]  # a group that is left out is in no statistic of the batch


@pytest.mark.parametrize("left_out", [False, True])
def test_the_pull_is_a_component_of_the_reward(monkeypatch: Any, left_out: bool) -> None:
    seen = []

    def advantage(rewards: GroupRewards) -> torch.Tensor:
        seen.append(rewards)
        return advantages.decoupled(rewards)

    rollout = rollout_of([[1.0, 0.0, 0.5]], weights=(2.0,))
    if left_out:  # of the loss; the others are compared with it all the same
        rollout = replace(rollout, kept=np.array([[True, True, False]]))
    method = PolicyGradient(RECIPE, loss=clipped, advantage=advantage, kl=PULLED)
    assert method.beside(rollout).tolist() == [[False, False, left_out]]
    parts = parts_of(rollout, 64) + parts_of(replace(rollout, kept=method.beside(rollout)), 64)
    columns = columns_of(parts)
    monkeypatch.setattr(method, "read", lambda _: columns)
    tree, *_ = method.annotate(rollout, parts)
    (rewards,) = seen
    d = np.concatenate([(known["old"] - known["reference"])[3:].reshape(-1, 2).astype(float).sum(1) for known in columns])
    np.testing.assert_allclose(rewards.parts[1, 0].numpy(), d, rtol=1e-6)
    np.testing.assert_allclose(rewards.total[0], np.array([2.0, 0.0, 1.0]) - 0.5 * d, rtol=1e-6)
    assert rewards.weights.tolist() == [2.0, -0.5]
    np.testing.assert_allclose(tree.columns["advantage"][3::2], advantages.decoupled(rewards)[0, : len(tree.ids) // 2 - 1], rtol=1e-5)


def test_nothing_is_read_beside_what_is_learnt_from_without_a_pull_in_the_reward() -> None:
    rollout = replace(rollout_of([[1.0, 0.0], [0.0, 1.0]]), kept=np.array([[True, False], [False, False]]))
    for kl in (KL(), KL(coef=0.5)):
        assert not PolicyGradient(RECIPE, loss=clipped, advantage=advantages.group, kl=kl).beside(rollout).any()
    pulled = PolicyGradient(RECIPE, loss=clipped, advantage=advantages.group, kl=PULLED)
    assert pulled.beside(rollout).tolist() == [[False, True], [False, False]]  # a group that is left out is compared with nothing


def recipe_of(model: Any) -> Recipe:
    def policy() -> PolicyModel:
        return build_policy(model, load_tokenizer(model), precision="float32", seed=0, device=torch.device("cpu"))

    return replace(RECIPE, policy=policy)


@pytest.mark.parametrize("coef", [0.0, 0.1])
def test_a_reference_that_is_not_there_is_not_in_checkpoints(coef: float) -> None:
    method = PolicyGradient(
        recipe_of(compose(["model=nano"])["model"]), loss=clipped, advantage=advantages.group, kl=KL(coef=coef), reference_update_every=2
    )
    method.configure_model()
    assert method.saved_names() <= method.state_dict().keys()
    assert any(name.startswith("reference.") for name in method.saved_names()) is bool(coef)


def test_a_reference_moves_before_it_reads_the_rollout_and_once_a_step(monkeypatch: Any) -> None:
    method = PolicyGradient(
        recipe_of(compose(["model=nano"])["model"]), loss=clipped, advantage=advantages.group, kl=KL(coef=0.1), rollout_epochs=2,
        reference_update_every=2, reference_update_mix=0.5,
    )  # fmt: skip
    method.configure_model()
    method.max_tokens = 64
    steps = iter([0, 2])
    monkeypatch.setattr(PolicyGradient, "global_step", property(lambda _: next(steps)))
    monkeypatch.setattr(PolicyGradient, "device", torch.device("cpu"))
    rollout = rollout_of([[1.0, 0.0]])
    parts = parts_of(rollout, 64)
    name, weight = next((n, p) for n, p in method.model.named_parameters() if p.requires_grad)
    theirs = method.reference.get_parameter(f"source.policy.{name}")
    method.read(parts)
    method.before_step(0)
    with torch.no_grad():
        weight.add_(1.0)
    method.before_step(1)
    start = theirs.clone()
    (columns,) = method.read(parts)
    torch.testing.assert_close(theirs, start + 0.5)
    moved = theirs.clone()
    method.before_step(2)
    method.before_step(3)
    assert torch.equal(theirs, moved)
    (again,) = [{"reference": method.reference(collate([parts[0].tree], StepShare(4.0, 1, 1)))}]
    np.testing.assert_allclose(columns["reference"][3:], again["reference"].numpy(), rtol=1e-5)


def test_training_leaves_dropout_out_whatever_the_mode(caplog: Any) -> None:
    model = compose(["model=nano", "model/peft=lora", "model.peft.dropout=0.5", "model.gradient_checkpointing=true"])["model"]

    method = PolicyGradient(recipe_of(model), loss=clipped, advantage=advantages.group)
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
