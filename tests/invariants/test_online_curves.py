"""Online methods: whole curves do not depend on how a step is computed, and start where the formulas say."""

import math

import pytest

from tests.tiers import mostly_slow

SHORT = ("rollout.max_new_tokens=12", "rollout.group_size=4", "reward=[language]", "reward.language.scripts=[han]", "optimizer.lr=1e-3")
LIGHT = ("limit=60", "global_batch=6", "max_steps=4", "validate.every_steps=null", "validate.at_start=false", "validate.at_end=false")
GRPO = ("method=grpo", *SHORT, *LIGHT)
KINDS = {
    "grpo": GRPO,
    "several steps a rollout": (*GRPO, "method.minibatches=2", "method.rollout_epochs=2", "max_steps=6"),
    "pulled": (*GRPO, "method.kl.coef=0.1", "method.entropy_coef=0.01", "method.loss=dapo"),
    "adapters": (*GRPO, "method.kl.coef=0.1", "model/peft=lora", "model.peft.dropout=0.0"),
    "rloo": ("method=rloo", *SHORT, *LIGHT),
    "gspo": (*GRPO, "method.loss=gspo", "method.minibatches=2"),
    "fixed length": (*GRPO, "method.loss=dr_grpo", "method.advantage.scale=none"),
    "reinforce": ("method=reinforce", *SHORT, *LIGHT),
    "resampled": (*GRPO, "method.selection=resample", "method.mask_truncated=true", "rollout.group_size=2"),
}
SAME = {"many micro-batches": ("max_tokens=64", "max_length=48"), "two ranks": ("hardware=2xcpu",), "padded": ("model.layout=padded",)}


def assert_same(ours, theirs):
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            # near an on-policy step the loss is a sum that cancels, and ratios leave 1 by rounding alone
            slack = 1e-9 if name in ("grad_norm", "tokens", "lr") else 2e-6
            assert math.isclose(a[name], b[name], rel_tol=1e-5, abs_tol=slack), (a["step"], name, a[name], b[name])


@pytest.mark.parametrize("kind", mostly_slow(KINDS, but=["several steps a rollout", "pulled", "resampled"]))
def test_the_curve_does_not_depend_on_micro_batches(curve, kind):
    assert_same(curve(*KINDS[kind], *SAME["many micro-batches"]), curve(*KINDS[kind]))


@pytest.mark.parametrize("kind", mostly_slow(["grpo", "several steps a rollout", "pulled"], but=["pulled"]))
def test_the_curve_does_not_depend_on_ranks(curve, kind):
    assert_same(curve(*KINDS[kind], *SAME["two ranks"]), curve(*KINDS[kind]))


def test_the_curve_does_not_depend_on_sharing_the_prompt(curve):
    assert_same(curve(*KINDS["pulled"], *SAME["padded"]), curve(*KINDS["pulled"]))


def test_an_on_policy_step_has_ratio_one_and_no_mismatch(curve):
    for row in curve(*KINDS["grpo"]):
        assert row["ratio/mean"] == pytest.approx(1.0, abs=1e-6)
        assert row["ratio/kl"] == pytest.approx(0.0, abs=1e-9)
        assert row["clip/high"] == row["clip/low"] == 0.0
        assert row["mismatch/abs"] < 1e-5


def test_truncated_sampling_is_seen_and_corrected(curve):
    for row in curve(*GRPO, "rollout.top_k=20", "method.importance=truncate"):
        assert row["mismatch/abs"] < 1e-5
        assert row["off_policy/abs"] > 0.1


def test_group_advantages_sum_to_zero_so_does_the_first_loss(curve):
    first = curve(*KINDS["fixed length"], "seed=6")[0]
    assert first["answers/length"] == 12, "an answer that ends early weighs less"
    assert first["loss"] == pytest.approx(0.0, abs=1e-6)


def test_the_first_step_of_a_pulled_run_is_at_its_reference(curve):
    assert curve(*KINDS["pulled"])[0]["kl"] == pytest.approx(0.0, abs=1e-9)
    assert curve(*KINDS["pulled"])[-1]["kl"] > 0


def test_equal_clips_with_the_mean_over_tokens_are_dapo(curve):
    dapo = curve(*GRPO, "method.loss=dapo", "method.loss.clip_high=0.2", "method.minibatches=2")
    grpo = curve(*GRPO, "method.loss=grpo", "method.loss.aggregation=token_mean", "method.minibatches=2")
    assert dapo == grpo


def test_a_rollout_is_told_with_its_first_step_and_counts_what_was_sampled(curve):
    rows = curve(*KINDS["several steps a rollout"])
    told = [row["step"] for row in rows if "reward/mean" in row]
    assert told == [1, 5]
    assert rows[0]["generated"] == pytest.approx(12 * 4 * rows[0]["answers/length"])
    assert rows[0]["prompts/asked"] == 12


def test_the_reward_rises(curve):
    rows = curve("method=grpo", *SHORT, *LIGHT, "max_steps=25", "optimizer.lr=3e-3", "scheduler=constant")
    assert rows[-1]["reward/mean"] > rows[0]["reward/mean"] + 0.2
