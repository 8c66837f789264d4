"""Options of online methods that exclude each other: found before anything is loaded."""

from __future__ import annotations

import pytest
import torch

from posttrain.errors import ConfigError
from posttrain.functional import advantages
from posttrain.runs.check import compose_and_check
from posttrain.runs.online_rules import COMPARING
from posttrain.runs.train import untrained
from posttrain.types import GroupRewards

BASE = ["model=nano", "data=arithmetic", "evaluation=none", "tracking=none", "hardware=cpu", "method=grpo"]
EXCLUDING = {
    "a ratio for k2": (["method.kl.coef=0.1", "method.kl.estimator=k2", "method.kl.unbiased=true"], "method.kl", "k2"),
    "dual clip": (["method.loss.dual_clip=1.1"], "method.loss", "dual_clip"),
    "bounds of a weight": (["method.loss=cispo", "method.loss.lower=6"], "method.loss", "cispo"),
    "bounds of a correction": (["method.importance=truncate", "method.importance.least=3"], "method.importance", "least"),
}
MISTAKES = {
    "sets larger than groups": (["method.advantage=pass_at_k", "rollout.group_size=2"], "method.advantage.k", "group_size is 2"),
    "a reference that nothing asks": (["method.reference_update_every=2"], "method.reference_update_every", "no pull"),
    "a temperature of its own": (["method.temperature=0.5"], "method.temperature", "rollout.temperature=1.0"),
    "a length of its own": (["method.longest=64"], "method.longest", "rollout.max_new_tokens=256"),
    "a comparison without others": (
        ["method=ppo", "reward=pair_judge", "rollout.group_size=1"],
        "reward.pair_judge",
        "leaves each without another",
    ),
    "a ratio off the loss": (["method.kl.unbiased=true", "method.kl.place=reward", "method.kl.coef=0.1"], "method.kl.unbiased", "reward"),
    "a rate without a target": (["method=ppo", "method.kl_rate=0.5"], "method.kl_rate", "without method.kl_target"),
    "tries without asking": (["method.selection_tries=9"], "method.selection_tries", "selection=keep"),
    "tries where groups are dropped": (
        ["method=online_dpo", "method.selection=drop", "method.selection_tries=9"],
        "method.selection_tries",
        "drop",
    ),
    "an estimator of nothing": (["method.kl.estimator=k1"], "method.kl.estimator", "no pull"),
    "a place for nothing": (["method.kl.place=reward"], "method.kl.place", "no pull"),
    "a ratio for nothing": (["method.kl.unbiased=true"], "method.kl.unbiased", "no pull"),
    "a bound of nothing": (["method.kl.clamp=3"], "method.kl.clamp", "no pull"),
    "an estimator of nothing, where another is usual": (
        ["method=rloo", "method.kl.coef=0", "method.kl.estimator=k3"],
        "method.kl.estimator",
        "no",
    ),
    "a reward that only watches": (
        ["reward=[length,math]", "reward.length.weight=0", "reward.math.weight=0"],
        "reward.length.weight",
        "worth 0",
    ),
    "a choice of nothing": (["reward=choice", "reward.choice.letters=''"], "reward.choice.letters", "two options"),
    "a choice of one": (["reward=choice", "reward.choice.letters=AA"], "reward.choice.letters", "two options"),
    "a choice of signs": (["reward=choice", "reward.choice.letters='A]'"], "reward.choice.letters", "two options"),
    "a stop that is everywhere": (["rollout.stop=['']"], "rollout.stop", "empty text"),
    "no group": (["rollout.group_size=1"], "rollout.group_size", "one answer"),
    "no group for a baseline": (
        ["method=reinforce", "method.advantage.baseline=true", "rollout.group_size=1"],
        "rollout.group_size",
        "one answer",
    ),
}


@pytest.mark.parametrize("name", EXCLUDING)
def test_options_that_exclude_each_other_are_found_without_a_model(name: str) -> None:
    overrides, where, words = EXCLUDING[name]
    config = compose_and_check([*BASE, *overrides])
    with pytest.raises(ConfigError, match=words) as found:
        untrained(config)
    assert found.value.problems[0].where == where


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str) -> None:
    overrides, where, words = MISTAKES[name]
    with pytest.raises(ConfigError) as found:
        compose_and_check([*BASE, *overrides])
    (problem,) = found.value.problems
    assert (problem.where, words in problem.message) == (where, True)


@pytest.mark.parametrize(
    ("reward", "setting"),
    [
        ("math", "math.workers=0"),
        ("math", "math.timeout=0"),
        ("math", "math.memory_gb=0"),
        ("exact_match", "exact_match.clip=-1"),
        ("pair_judge", "pair_judge.opponents=0"),
        ("code", "code.workers=0"),
        ("heuristic", "heuristic.toxic_ratio=2"),
        ("overlong", "overlong.cache=0"),
        ("trajectory", "trajectory.step_weight=1.5"),
        ("numeric", "numeric.absolute=-1"),
        ("length", "length.target=0"),
    ],
)
def test_numbers_of_rewards_that_are_out_of_range(reward: str, setting: str) -> None:
    with pytest.raises(ConfigError) as found:
        compose_and_check([*BASE, f"reward={reward}", f"reward.{setting}"])
    (problem,) = found.value.problems
    assert (problem.where, problem.message[:8]) == (f"reward.{setting.partition('=')[0]}", "expected")


def test_numbers_of_judges_that_are_out_of_range() -> None:
    judge = ["reward=judge", "reward/backend=openai", "reward.judge.backend.url=http://x/v1", "reward.judge.backend.model=m"]
    with pytest.raises(ConfigError) as found:
        compose_and_check([*BASE, *judge, "reward.judge.backend.concurrency=0", "reward.judge.backend.timeout=0"])
    assert {problem.where for problem in found.value.problems} == {"reward.judge.backend.concurrency", "reward.judge.backend.timeout"}


@pytest.mark.parametrize(
    "options",
    [
        ["method.selection=resample", "method.selection_tries=9"],
        ["method.selection_tries=4"],
        ["method=ppo", "method.kl_target=3", "method.kl_rate=0.5"],
        ["method.kl.unbiased=true", "method.kl.coef=0.1"],
        ["method.kl.coef=0.1", "method.kl.estimator=k1", "method.kl.clamp=3"],
        ["method=rloo", "method.kl.coef=0"],  # whose place and estimator are its own
        ["method=ppo", "method.kl.coef=0"],
        ["method.kl.estimator=k3", "method.kl.clamp=null", "method.reference=copy"],
        ["reward=[length,math]", "reward.length.weight=0"],
        ["reward=choice", "reward.choice.letters=ABCDEFGH"],
    ],
)
def test_options_that_act_or_do_no_harm(options: list[str]) -> None:
    assert compose_and_check([*BASE, *options])["method"]


@pytest.mark.parametrize("method", [["method=reinforce"], ["method.advantage=raw"], ["method=ppo"]])
def test_single_answers_are_enough_where_none_are_compared(method: list[str]) -> None:
    assert compose_and_check([*BASE, *method, "rollout.group_size=1"])["rollout"]["group_size"] == 1


@pytest.mark.parametrize("name", COMPARING)
def test_those_that_compare_are_0_for_an_only_answer(name: str) -> None:
    rewards = torch.tensor([[3.0], [1.0]], dtype=torch.float64)
    known = GroupRewards(rewards, rewards[None], torch.ones(1))
    options = {"k": 1} if name == "pass_at_k" else {}
    assert not vars(advantages)[name](known, **options).any()
