"""PPO: what it makes of a rollout by hand, that nothing depends on how it is computed, and that it learns."""

from __future__ import annotations

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain.errors import ConfigError
from posttrain.functional.policy import clipped
from posttrain.methods.parts.critic import Coefficient, with_own_rate
from posttrain.methods.parts.online import KL
from posttrain.methods.parts.recipe import Recipe
from posttrain.methods.ppo import PPO
from posttrain.models import optimizers
from posttrain.models.heads import make
from posttrain.models.loading import seeded
from posttrain.models.values import load_value_head, value_head
from posttrain.rewards.base import Reward
from posttrain.rollout.plan import parts_of
from posttrain.runs.check import compose_and_check
from posttrain.runs.compose import compose
from posttrain.runs.job import run_job
from posttrain.types import Completion, Group, GroupRewards, Rollout

BASE = [
    "method=ppo", "model=nano", "data=arithmetic", "evaluation=none", "tracking=none", "hardware=cpu", "limit=40", "max_length=32",
    "global_batch=4", "rollout.group_size=2", "rollout.max_new_tokens=12", "max_steps=6", "optimizer.lr=1e-3", "validate.at_start=false",
    "validate.at_end=false", "reward=length", "reward.length.unit=characters", "reward.length.target=12", "reward.length.under=1.0",
]  # fmt: skip
GAMMA, LAM, COEF, CUT = 0.9, 0.8, 0.5, 0.25


def run(folder, *overrides):
    """Metrics of every step of a run, by step."""
    assert run_job(compose([*BASE, *overrides, f"output_dir={folder}"])) == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if "loss" in row}


def state(folder, step):
    """What the checkpoint of a step holds."""
    return torch.load(folder / "checkpoints" / f"step-{step:08d}" / "state.ckpt", weights_only=True)


# ---------------------------------------------------------------------------------------------------------------- by hand


def rollout_of(scores):
    """Two prompts with two answers each: 3, 1, 2 and 4 tokens; the last one is cut off."""
    rng = np.random.default_rng(0)
    groups, lengths = [], [[3, 1], [2, 4]]
    for number, several in enumerate(lengths):
        finishes = ["length" if length == 4 else "stop" for length in several]
        answers = [
            Completion(rng.integers(0, 99, n).astype(np.int32), -rng.random(n, np.float32), finish)
            for n, finish in zip(several, finishes, strict=True)
        ]
        groups.append(Group(number, np.arange(2 + number, dtype=np.int32), tuple(answers)))
    total = torch.tensor(scores, dtype=torch.float64)
    return Rollout(0, tuple(groups), GroupRewards(total, total[None], torch.ones(1, dtype=torch.float64)), ~np.isnan(total.numpy()))


def columns_of(parts):
    """Made-up log-probabilities and values of the parts' tokens."""
    rng = np.random.default_rng(1)

    def made(tree):
        return np.where(tree.weights > 0, rng.standard_normal(len(tree.ids)), 0.0).astype(np.float32)

    return [{name: made(part.tree) for name in ("old", "values", "reference")} for part in parts]


def method_of(**options):
    recipe = Recipe(policy=None, optimizer=None, scheduler=None, max_steps=4)
    return PPO(recipe, loss=partial(clipped, aggregation="token_mean"), **options)


def by_definition(rollout, parts, columns):
    """Advantages before they are whitened, and returns, of every token in order, in plain Python."""
    advantages, returns = [], []
    for part, known in zip(parts, columns, strict=True):
        end = int(part.tree.segment_lengths[0])
        for answer in part.answers:
            completion = rollout.groups[part.group].completions[answer]
            start, end = end, end + len(completion.tokens)
            old, values, reference = (known[name][start:end].astype(float) for name in ("old", "values", "reference"))
            rewards = -COEF * (old - reference)
            rewards[-1] += float(rollout.rewards.total[part.group, answer]) - (CUT if completion.finish == "length" else 0.0)
            following = [*values[1:], 0.0]
            delta = rewards + GAMMA * np.array(following) - values
            own = [sum((GAMMA * LAM) ** j * delta[t + j] for j in range(len(delta) - t)) for t in range(len(delta))]
            advantages += own
            returns += list(own + values)
    return np.array(advantages), np.array(returns)


@pytest.mark.parametrize("max_tokens", [64, 7], ids=["groups whole", "groups cut"])
def test_a_rollout_is_annotated_as_the_definitions_say(monkeypatch, max_tokens):
    rollout = rollout_of([[1.0, -0.5], [math.nan, 2.0]])
    parts = parts_of(rollout, max_tokens)
    assert sum(len(part.answers) for part in parts) == 3  # the one that could not be scored is left out
    method = method_of(kl=KL(coef=COEF, estimator="k1", place="reward"), gamma=GAMMA, lam=LAM, missing_end=CUT)
    columns = columns_of(parts)
    monkeypatch.setattr(method, "read", lambda _: columns)
    trees = method.annotate(rollout, parts)
    advantages, returns = by_definition(rollout, parts, columns)
    trained = [tree.weights > 0 for tree in trees]
    found = {
        name: np.concatenate([tree.columns[name][some] for tree, some in zip(trees, trained, strict=True)]) for name in trees[0].columns
    }
    np.testing.assert_allclose(found["returns"], returns, rtol=1e-6)
    np.testing.assert_allclose(found["advantage"], (advantages - advantages.mean()) / advantages.std(ddof=1), rtol=1e-5, atol=1e-6)
    assert all(not tree.columns[name][~some].any() for tree, some in zip(trees, trained, strict=True) for name in ("advantage", "returns"))
    np.testing.assert_array_equal(trees[0].reference, columns[0]["reference"])
    shown = method.step_metrics({})
    values = np.concatenate([known["values"][some] for known, some in zip(columns, trained, strict=True)]).astype(float)
    kl = sum(float((known["old"] - known["reference"]).sum()) for known in columns) / 3
    assert shown["value/explained_variance"] == pytest.approx(1 - np.var(returns - values) / np.var(returns))
    assert shown["advantage/std"] == pytest.approx(advantages.std(ddof=1))
    assert (shown["returns/mean"], shown["kl/answer"], shown["kl/coef"]) == pytest.approx((returns.mean(), kl, COEF), rel=1e-5)
    assert method.step_metrics({}) == {}  # told once, with the rollout's first step


def test_the_pull_of_a_rollout_is_the_same_in_all_its_steps(monkeypatch):
    rollout = rollout_of([[1.0, -0.5], [0.0, 2.0]])
    parts = parts_of(rollout, 64)
    method = method_of(kl=KL(coef=COEF, estimator="k1", place="loss"), kl_target=1e-3)
    monkeypatch.setattr(method, "read", lambda _: columns_of(parts))
    method.annotate(rollout, parts)
    assert (method.step_metrics({})["kl/coef"], method.pull) == (COEF, COEF)
    method.annotate(rollout, parts)
    assert method.step_metrics({})["kl/coef"] == method.pull != COEF


def test_whitened_rewards_have_a_deviation_of_1_and_keep_their_mean(monkeypatch):
    rollout = rollout_of([[1.0, -0.5], [0.0, 2.0]])
    parts = parts_of(rollout, 64)
    columns = [{**known, "values": 0 * known["values"]} for known in columns_of(parts)]
    rewards = {}
    for whiten in (False, True):
        method = method_of(gamma=1.0, lam=0.0, whiten_rewards=whiten)  # without values and with lam = 0, returns are the tokens' rewards
        monkeypatch.setattr(method, "read", lambda _: columns)
        rewards[whiten] = np.concatenate([tree.columns["returns"][tree.weights > 0] for tree in method.annotate(rollout, parts)])
    plain, white = rewards[False], rewards[True]
    assert white.std(ddof=1) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(white, (plain - plain.mean()) / plain.std(ddof=1) + plain.mean(), rtol=1e-5)


def test_a_plan_counts_the_head_and_a_reference_only_where_there_is_one():
    method = method_of()
    assert [sum(p.numel() for p in module.parameters()) for module in method.modules_beside(16)] == [17]
    assert method.copies(adapters_off_restore=False) == 1
    assert method.copies(adapters_off_restore=True) == 0
    assert method_of(kl=KL(coef=0.0)).copies(adapters_off_restore=False) == 0


def test_nothing_to_learn_from_is_no_error():
    rollout = rollout_of([[math.nan] * 2] * 2)
    method = method_of()
    assert method.annotate(rollout, parts_of(rollout, 64)) == []
    assert method.step_metrics({})["value/explained_variance"] == 0.0


def test_single_answers_inform_unless_all_rewards_are_alike():
    method = method_of()

    def informative(scores):
        return method.informative(rollout_of(scores)).tolist()

    assert informative([[1.0, 1.0], [0.0, 0.0]]) == [True, True]
    assert informative([[1.0] * 2] * 2) == [False, False]
    assert informative([[1.0, 0.0], [math.nan] * 2]) == [True, False]


def test_the_coefficient_follows_the_divergence():
    coefficient = Coefficient(0.1, target=2.0, rate=0.5)
    for divergence in (2.0, 100.0, 1.9, 0.0):
        before = float(coefficient.value)
        coefficient.follow(divergence)
        assert float(coefficient.value) == before  # stays in force for the rollout
        coefficient.begin()
    assert float(coefficient.value) == pytest.approx(0.1 * (1 + 0.5 * 0.2) * (1 - 0.5 * 0.05) * (1 - 0.5 * 0.2))
    assert coefficient.state_dict().keys() == {"value", "following"}
    still = Coefficient(0.1, target=None, rate=0.5)
    still.follow(100.0)
    assert float(still.value) == 0.1
    assert not still.state_dict()


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor"])
def test_optimizers_pass_over_weights_without_a_gradient_and_the_head_has_a_rate_of_its_own(name):
    with seeded(0):
        named = [("policy.w", torch.nn.Parameter(torch.randn(3, 3))), ("policy.b", torch.nn.Parameter(torch.randn(3)))]
        named += [("value_head.weight", torch.nn.Parameter(torch.randn(1, 3)))]
    optimizer = with_own_rate(partial(getattr(optimizers, name), lr=0.1, weight_decay=0.5), named, prefix="value_head.", lr=0.0)
    assert [(group["lr"], len(group["params"])) for group in optimizer.param_groups] == [(0.1, 1), (0.1, 1), (0.0, 1)]
    start = {key: parameter.detach().clone() for key, parameter in named}
    sum(parameter.square().sum() for _, parameter in named).backward()
    optimizer.step()
    assert all(torch.equal(parameter, start[key]) == (key == "value_head.weight") for key, parameter in named)
    before = [json.dumps(optimizer.state_dict(), default=lambda value: value.tolist()), *(p.detach().clone() for _, p in named)]
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    assert json.dumps(optimizer.state_dict(), default=lambda value: value.tolist()) == before[0]
    assert all(torch.equal(p, old) for (_, p), old in zip(named, before[1:], strict=True))


# ---------------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two rollouts and its folder: minibatches, an entropy bonus, an adaptive pull and a head with a rate of its own."""
    folder = tmp_path_factory.mktemp("ppo") / "run"
    return folder, run(folder, *MANY, "checkpoint.every_steps=1", "checkpoint.keep_last=9")


MANY = [
    "method.minibatches=2", "method.rollout_epochs=2", "global_batch=2", "method.entropy_coef=0.01", "method.value_lr=1e-2",
    "method.kl_target=0.01",
]  # fmt: skip


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for step in ours:
        assert ours[step].keys() == theirs[step].keys()
        for name, value in ours[step].items():
            if name == "tokens":  # a prompt whose answers lie in two trees is computed twice
                continue
            assert math.isclose(value, theirs[step][name], rel_tol=1e-5, abs_tol=5e-7), (step, name, value, theirs[step][name])


def test_the_first_step_of_a_rollout_is_on_policy(whole):
    _, rows = whole
    for step in (1, 5):
        assert rows[step]["ratio/mean"] == pytest.approx(1.0, abs=1e-6)
        assert rows[step]["ratio/kl"] == pytest.approx(0.0, abs=1e-10)
        assert rows[step]["clip/high"] == rows[step]["clip/low"] == rows[step]["value/clip"] == 0.0
    assert rows[4]["ratio/kl"] > 1e-5
    assert rows[1]["value/loss"] == pytest.approx(rows[1]["value/error"] / 2)
    assert rows[1]["loss"] == pytest.approx(rows[1]["policy/loss"] + 0.1 * rows[1]["value/loss"], abs=1e-7)
    assert rows[1]["kl/coef"] == pytest.approx(0.05)
    assert rows[5]["kl/coef"] == pytest.approx(0.05 * (1 - 0.1 * 0.2))  # the first rollout was the reference itself


def test_nothing_depends_on_the_split(whole, tmp_path):
    assert_same(run(tmp_path / "split", *MANY, "max_tokens=48"), whole[1])


def test_nothing_depends_on_the_ranks(whole, tmp_path):
    assert_same(run(tmp_path / "ranks", *MANY, "hardware=2xcpu"), whole[1])


@pytest.mark.parametrize("step", [2, 4])
def test_continuing_within_a_rollout_is_never_having_stopped(whole, tmp_path, step):
    folder, rows = whole
    again = run(tmp_path / "second", *MANY, f"resume={folder / 'checkpoints' / f'step-{step:08d}'}")
    assert again == {number: row for number, row in rows.items() if number > step}
    for name in ("model.safetensors", "value_head/model.safetensors"):
        assert (tmp_path / "second" / "artifact" / name).read_bytes() == (folder / "artifact" / name).read_bytes()


STOPPED = ["method.target_kl=1e-9", "method.rollout_epochs=4", "optimizer.weight_decay=0.1"]


def test_a_rollout_that_went_too_far_is_left_exactly_where_it_is(tmp_path):
    rows = run(tmp_path / "run", *STOPPED, "checkpoint.every_steps=1", "checkpoint.keep_last=9")
    assert [rows[step]["stopped"] for step in rows] == [0, 0, 1, 1, 0, 0]
    assert rows[2]["ratio/kl"] > 1e-9
    assert [rows[step]["grad_norm"] > 0 for step in rows] == [True, True, False, False, True, True]
    assert rows[4]["examples"] == rows[2]["examples"]
    states = [state(tmp_path / "run", step) for step in (1, 2, 3, 4, 5)]
    weights = [{name: value for name, value in found["state_dict"].items() if name != "stopped"} for found in states]

    def same(one, other):
        return all(torch.equal(value, weights[other][name]) for name, value in weights[one].items())

    assert [same(1, other) for other in (0, 1, 2, 3, 4)] == [False, True, True, True, False]
    moments = [found["optimizer_states"][0]["state"] for found in states]
    for other in (2, 3):
        assert all(torch.equal(value, moments[other][key][name]) for key, some in moments[1].items() for name, value in some.items())
    # the schedule went on; and a run that continues within the steps left out stays out of them
    assert [rows[step]["lr"] for step in (2, 3, 4)] == sorted({rows[step]["lr"] for step in (2, 3, 4)}, reverse=True)
    again = run(tmp_path / "second", *STOPPED, f"resume={tmp_path / 'run' / 'checkpoints' / 'step-00000003'}")
    assert again == {step: rows[step] for step in (4, 5, 6)}


def test_ranks_leave_out_the_same_steps(tmp_path):
    assert_same(run(tmp_path / "two", *STOPPED, "hardware=2xcpu"), run(tmp_path / "one", *STOPPED))


def test_a_head_beside_adapters(tmp_path):
    rows = run(tmp_path / "run", "model/peft=lora", "model.peft.dropout=0.0", "optimizer.lr=1e-2", "max_steps=5")
    assert rows[1]["kl"] == pytest.approx(0.0, abs=1e-7)  # adapters off: the reference
    assert abs(rows[5]["kl"]) > 1e-6
    assert load_value_head(tmp_path / "run" / "artifact").weight.abs().max() > 1e-4


# ---------------------------------------------------------------------------------------------------------------- the value head


def test_the_value_head_travels_with_a_plain_model(whole, tmp_path):
    folder, _ = whole
    artifact = folder / "artifact"
    assert json.loads((artifact / "artifact.json").read_text())["value_head"] == "value_head/model.safetensors"
    trained = state(folder, 6)["state_dict"]
    head = load_value_head(artifact)
    assert torch.equal(head.weight, trained["value_head.weight"])
    assert torch.equal(head.bias, trained["value_head.bias"])
    assert head.weight.abs().max() > 1e-3
    _, about = AutoModelForCausalLM.from_pretrained(artifact, output_loading_info=True)
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    second = run(tmp_path / "next", "max_steps=1", f"model.path={artifact}", "model.weights=pretrained", f"method.value_from={artifact}")
    assert second[1]["value/mean"] != 0.0


def test_a_scalar_reward_head_is_a_start_too(tmp_path):
    from posttrain.models.artifact import ArtifactRecord
    from posttrain.models.loading import build_model
    from posttrain.models.reward_artifact import save_reward_artifact
    from posttrain.models.tokenizers import load_tokenizer

    config = compose(["model=nano"])["model"]
    tokenizer = load_tokenizer(config)
    model = build_model(config, dtype=torch.float32, seed=0)
    record = ArtifactRecord("reward_model", None, {}, "", {}, {})
    for kind in ("scalar", "quantile"):
        with seeded(1):
            head = make(kind, 128, [], {})
        save_reward_artifact(model, head, tokenizer, tmp_path / kind, record=record)
    with seeded(1):
        scalar = make("scalar", 128, [], {})
    found = value_head(128, tmp_path / "scalar")
    assert torch.equal(found.weight, scalar.score.weight)
    assert not found.bias.any()
    with pytest.raises(ConfigError, match="no linear map"):
        load_value_head(tmp_path / "quantile")
    with pytest.raises(ConfigError, match="the model has 64"):
        value_head(64, tmp_path / "scalar")


# ---------------------------------------------------------------------------------------------------------------- learning, mistakes


class Plain(Reward):
    """The share of an answer's characters that are plain text."""

    def measure(self, samples):
        return [sum(c.isascii() and c.isprintable() for c in s.completion) / max(1, len(s.completion)) for s in samples]


class Sum(Reward):
    """1 if the prompt asks for a sum: nothing the policy can change, and something the critic can know."""

    def measure(self, samples):
        return [float("+" in sample.prompt[-1]["content"]) for sample in samples]


def test_the_reward_rises_and_the_critic_learns(tmp_path):
    overrides = [
        "max_steps=48", "global_batch=8", "rollout.group_size=8", "rollout.max_new_tokens=8", "method.kl.coef=0", "optimizer.lr=2e-3",
        "method.value_coef=0.5", "method.value_clip=null", "scheduler=constant", "limit=64",
    ]  # fmt: skip
    config = compose([*BASE, *overrides, f"output_dir={tmp_path / 'run'}"])
    rewards = {kind.__name__: {"_target_": f"{__name__}.{kind.__name__}"} for kind in (Plain, Sum)}
    assert run_job({**config, "reward": rewards}, allow_targets=[__name__]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rollouts = [row for row in rows if "reward/mean" in row]
    reward, known = ([row[name] for row in rollouts] for name in ("reward/Plain", "value/explained_variance"))
    assert np.mean(reward[-3:]) > np.mean(reward[:2]) + 0.2
    assert max(known[:2]) < 0.2
    assert np.mean(known[-3:]) > 0.5


MISTAKES = {
    "adapting no pull": (["method.kl_target=6", "method.kl.coef=0"], "method.kl_target", "no pull"),
    "stopping a single step": (["method.target_kl=0.1", "method.rollout_epochs=1"], "method.target_kl", "single step"),
    "lowering what is left out": (["method.missing_end=1", "method.mask_truncated=true"], "method.missing_end", "left out"),
    "a head from nowhere": (["method.value_from=./nowhere"], "method.value_from", "no such folder"),
    "a discount above 1": (["method.gamma=1.1"], "method.gamma", "1.1"),
    "no clipping range": (["method.value_clip=0"], "method.value_clip", "0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_found_before_anything_is_loaded(name):
    overrides, where, words = MISTAKES[name]
    with pytest.raises(ConfigError) as found:
        compose_and_check([*BASE, *overrides])
    (problem,) = found.value.problems
    assert problem.where == where
    assert words in problem.message


def test_the_experiment_has_its_settings():
    config = compose_and_check(["experiment=gemma_ppo", "model.weights=random"])
    method = config["method"]
    named = ("rollout_epochs", "entropy_coef", "value_coef", "gamma", "lam")
    assert [method[name] for name in named] == [4, 0.01, 0.5, 1.0, 0.95]
    assert (method["loss"]["clip"], method["kl"]["coef"], config["optimizer"]["lr"]) == (0.2, 0.1, 1e-5)
    assert config["global_batch"] * config["rollout"]["group_size"] * method["minibatches"] == 64
    assert method["target_kl"] is not None
