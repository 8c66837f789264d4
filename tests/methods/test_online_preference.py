"""Online DPO: the loss of DPO on the policy's own answers, whatever the split; what no pair can be made of; what it learns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from posttrain.data.tree import collate, tree_of
from posttrain.errors import ConfigError
from posttrain.functional import preference
from posttrain.methods.online_preference import OnlineDPO
from posttrain.methods.parts.recipe import Recipe
from posttrain.methods.preference import DPO
from posttrain.models.build import build_policy
from posttrain.models.policy import PolicyModel
from posttrain.models.tokenizers import load_tokenizer
from posttrain.rollout.plan import ExperiencePlan, parts_of
from posttrain.runs.compose import compose
from posttrain.runs.job import run_job
from posttrain.types import Completion, Group, GroupRewards, Rollout, StepShare, TokenTree

MODEL = compose(["model=nano"])["model"]
TOKENIZER = load_tokenizer(MODEL)
PROMPTS, ANSWERS = 3, 4
LOSSES = {
    "sigmoid": partial(preference.sigmoid, beta=0.3),
    "ipo": partial(preference.ipo, beta=0.3),
    "bco": partial(preference.bco, beta=0.3),
    "aot": partial(preference.aot, beta=0.3),
}


def recipe() -> Recipe:
    def policy() -> PolicyModel:
        return build_policy(MODEL, TOKENIZER, precision="float32", seed=0, device=torch.device("cpu"))

    return Recipe(policy, partial(torch.optim.SGD, lr=0.1), lambda *_: None, 1, seed=5)  # type: ignore[arg-type, return-value]


def moved(method: Any) -> Any:
    """The method with its model built, away from its reference."""
    method.configure_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    return method


def rollout(rewards: Tensor | None = None) -> Rollout:
    random = np.random.default_rng(0)
    lengths = random.integers(2, 9, (PROMPTS, ANSWERS))
    groups = tuple(
        Group(number, random.integers(0, 256, 4 + number).astype(np.int32), tuple(map(partial(completion, random), own)), number)
        for number, own in enumerate(lengths)
    )
    total = torch.from_numpy(random.random((PROMPTS, ANSWERS))) if rewards is None else rewards
    return Rollout(2, groups, GroupRewards(total, total[None], torch.ones(1)), ~total.isnan().numpy())


def completion(random: np.random.Generator, length: int) -> Completion:
    return Completion(random.integers(0, 256, length).astype(np.int32), np.zeros(length, np.float32), "stop")


class Step:
    """The micro-batches of one step, as a loader gives them."""

    def __init__(self, trees: list[TokenTree]) -> None:
        self.trees, self.micro_batches, self.parts = trees, len(trees), len(trees)

    def step_trees(self, step: int, *, mismatched: bool = False) -> Iterator[TokenTree]:
        return iter([tree for tree in self.trees if len(tree.ids)])


def gradient(method: Any, trees: list[TokenTree]) -> tuple[float, Tensor, dict[str, float]]:
    """Loss, gradient and metrics of a step."""
    method.steps = Step(trees)
    sums: dict[str, float] = {}
    for number, tree in enumerate(trees):
        (method.training_step(tree, number) / len(trees)).backward()
    sums = {name: float(value) for name, value in method.pop_sums().items()}
    whole = torch.cat([p.grad.flatten() for p in method.model.parameters() if p.grad is not None])
    method.zero_grad()
    return sums["loss"], whole, sums


def online_trees(method: OnlineDPO, some: Rollout, max_tokens: int, micro_batches: int = 16) -> list[TokenTree]:
    method.max_tokens = max_tokens
    cut = parts_of(some, max_tokens, method.arrange(some).units)
    with torch.no_grad():
        trees = method.annotate(some, cut)
    parts = [SimpleNamespace(**{**vars(part), "tree": tree}) for part, tree in zip(cut, trees, strict=True)]
    plan = ExperiencePlan(lambda _: np.arange(9), ANSWERS, PROMPTS, 1, 1, 1, 1, max_tokens, micro_batches, 0)
    return plan.split(parts, 0, parts[0].tree)  # type: ignore[arg-type]


def offline_tree(method: OnlineDPO, some: Rollout) -> TokenTree:
    """The same pairs as a preference data set has them."""
    examples = []
    for group, pairs in zip(some.groups, method.arrange(some).units or (), strict=True):
        for pair in pairs:
            answers = [group.completions[number].tokens for number in pair]
            weights = [np.r_[np.zeros(len(group.prompt)), np.ones(len(answer))] for answer in answers]
            examples.append(tree_of([(np.r_[group.prompt, answer], weight) for answer, weight in zip(answers, weights, strict=True)]))
    return collate(examples, StepShare(float(sum(e.weights.sum() for e in examples)), len(examples), 1))


@pytest.mark.parametrize("pairs", ["best_worst", "all", "random_two"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_dpos_on_the_same_pairs_however_the_step_is_split(pairs: Any, loss: str) -> None:
    online = moved(OnlineDPO(recipe(), loss=LOSSES[loss], pairs=pairs, sft_weight=0.2))
    dpo = moved(DPO(recipe(), loss=LOSSES[loss], sft_weight=0.2))
    some = rollout()
    want, slopes, metrics = gradient(dpo, [offline_tree(online, some)])
    for max_tokens in (24, 32, 1000):
        trees = online_trees(online, some, max_tokens)
        assert max_tokens == 1000 or sum(bool(len(tree.ids)) for tree in trees) > 1
        got, found, sums = gradient(online, trees)
        assert got == pytest.approx(want, rel=1e-5)
        torch.testing.assert_close(found, slopes, rtol=1e-4, atol=1e-6)
        assert sums["rewards/margin"] == pytest.approx(metrics["rewards/margin"], rel=1e-4)
        assert sums["pairs"] == sum(map(len, online.arrange(some).units or ()))


def test_ties_and_answers_without_a_score_make_no_pair() -> None:
    nan = float("nan")
    method = OnlineDPO(recipe(), loss=LOSSES["sigmoid"], pairs="all")
    rewards = torch.tensor([[0.5, 0.5, 0.5, 0.5], [nan, 0.2, nan, nan], [nan, 0.7, 0.1, 0.7]], dtype=torch.float64)
    found = method.arrange(rollout(rewards))
    assert found.units == ((), (), ((1, 2), (3, 2)))
    assert found.notes == {"pairs/made": 2.0, "pairs/tied": 7.0, "pairs/left_out": 4.0}
    assert method.informative(rollout(rewards)).tolist() == [False, False, True]


def test_two_at_random_are_the_same_two_after_a_resume() -> None:
    one, other = (OnlineDPO(recipe(), loss=LOSSES["sigmoid"], pairs="random_two") for _ in range(2))
    assert one.arrange(rollout()) == other.arrange(rollout())


def test_a_group_whose_two_answers_are_equal_teaches_nothing_though_others_differ() -> None:
    """So that resampling replaces it; and the two stay the same when groups before it are replaced."""
    method = OnlineDPO(recipe(), loss=LOSSES["sigmoid"], pairs="random_two")
    rare = torch.zeros(64, 8, dtype=torch.float64)
    rare[:, 3] = 1.0  # a quarter of the pairs differ
    some = rollout()
    groups = tuple(Group(number, some.groups[0].prompt, some.groups[0].completions * 2, number) for number in range(64))
    whole = Rollout(2, groups, GroupRewards(rare, rare[None], torch.ones(1)), np.ones((64, 8), bool))
    made = [bool(pairs) for pairs in method.arrange(whole).units or ()]
    assert method.informative(whole).tolist() == made
    assert 4 < sum(made) < 32
    later = replace(whole, number=7, groups=groups[::-1])
    assert method.informative(later).tolist() == made[::-1]


def test_what_does_not_go_together() -> None:
    with pytest.raises(ConfigError, match="tail_weight"):
        OnlineDPO(recipe(), loss=LOSSES["sigmoid"], pairs="all", tail_weight=0.5)
    with pytest.raises(ConfigError, match="no use for a reference"):
        OnlineDPO(recipe(), loss=partial(preference.simpo))


RUN = [
    "method=rlaif", "model=nano", "data=arithmetic", "evaluation=none", "tracking=none", "hardware=cpu", "limit=200", "global_batch=8",
    "rollout.group_size=4", "rollout.max_new_tokens=12", "optimizer.lr=1e-3", "validate.at_start=false",
    "validate.max_examples=24",
]  # fmt: skip


def run(folder: Path, *overrides: str) -> list[dict[str, Any]]:
    assert run_job(compose([*RUN, *overrides, f"output_dir={folder}"])) == 0
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("loss", ["sigmoid", "bco", "aot"])
def test_continuing_in_the_middle_of_a_rollout_is_never_having_stopped(tmp_path: Path, loss: str) -> None:
    often = ["max_steps=4", "method.minibatches=2", "method.rollout_epochs=2", f"method.loss={loss}", "method.pairs=all"]
    often += ["checkpoint.every_steps=3", "checkpoint.keep_last=9"]
    whole = run(tmp_path / "whole", *often)
    (checkpoint,) = (tmp_path / "whole" / "checkpoints").glob("*step*3*")
    again = run(tmp_path / "again", *often, f"resume={checkpoint}")
    assert [row for row in whole if row["step"] > 3] == [row for row in again if row["step"] > 3]
    weights = [(tmp_path / name / "artifact" / "model.safetensors").read_bytes() for name in ("whole", "again")]
    assert weights[0] == weights[1]


def test_a_step_without_a_pair_changes_nothing(tmp_path: Path) -> None:
    # no answer holds a text this long, so the judge finds all of them equal
    rows = run(tmp_path / "run", "max_steps=2", "reward.pair_judge.backend.prefer=contains", f"reward.pair_judge.backend.text={'q' * 30}")
    steps = [row for row in rows if "pairs/made" in row]
    assert [row["pairs/made"] for row in steps] == [0, 0]
    assert [row["loss"] for row in steps] == [0, 0]
    assert [row["grad_norm"] for row in steps] == [0, 0]


def test_a_judge_moves_what_it_judges(tmp_path: Path) -> None:
    """The scripted judge prefers answers with an `e`; a random model writes one into few of its answers."""
    judge = ["reward.pair_judge.backend.prefer=contains", "reward.pair_judge.backend.text=e"]
    watched = ["reward=[pair_judge,judge]", "reward.judge.weight=0", "reward.judge.backend.prefer=contains", "reward.judge.backend.text=e"]
    rows = run(
        tmp_path / "run",
        *judge,
        *watched,
        "max_steps=20",
        "global_batch=16",
        "rollout.group_size=8",
        "validate.at_start=true",
        "validate.max_examples=null",
    )
    shares = [row["reward/judge"] for row in rows if "reward/judge" in row]
    assert np.mean(shares[:2]) < 0.2
    assert np.mean(shares[-3:]) > np.mean(shares[:2]) + 0.3  # of 384 and 256 answers: ten standard errors
    (wins,) = [row["val/win_rate/pair_judge"] for row in rows if "val/win_rate/pair_judge" in row]
    assert wins > 0.7


@pytest.mark.slow
def test_the_judge_as_a_reward_moves_it_too(tmp_path: Path) -> None:
    judge = ["reward=[judge]", "reward.judge.backend.prefer=contains", "reward.judge.backend.text=e"]
    rows = run(tmp_path / "run", "method=grpo", *judge, "max_steps=20", "global_batch=16", "rollout.group_size=8", "validate.at_end=false")
    shares = [row["reward/judge"] for row in rows if "reward/judge" in row]
    assert np.mean(shares[-3:]) > np.mean(shares[:2]) + 0.3
