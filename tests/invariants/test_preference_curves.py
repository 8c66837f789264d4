"""Preference methods: they start where policy and reference agree, and their curves do not depend on how a step is computed."""

import math

import pytest

DPO = ("method=dpo", "data=arithmetic_pairs", "optimizer.lr=1e-3")
ADAPTED = (*DPO, "model/peft=lora", "model.peft.dropout=0.0")
LN2 = math.log(2)
START = {
    "sigmoid": LN2, "sigmoid_norm": LN2, "hinge": 1.0, "ipo": 25.0, "nca": 2 * LN2, "robust": LN2, "sppo": 50.0, "apo_zero": 1.0,
    "apo_down": 1.0, "discopop": (LN2 + 1) / 2, "exo": (math.log(0.5 / 0.999) + math.log(0.5 / 0.001)) / 2,
}  # fmt: skip
SAME = {
    "many micro-batches": ("max_tokens=128", "max_length=128"),
    "two ranks": ("hardware=2xcpu",),
    "prompts repeated": ("model.layout=packed",),
    "padded": ("model.layout=padded",),
}


def assert_same(ours, theirs):
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            # rewards are differences of sums over an answer: their rounding is that of the sums
            slack = 2e-6 if "rewards" in name else 1e-9
            assert math.isclose(a[name], b[name], rel_tol=1e-5, abs_tol=slack), (a["step"], name, a[name], b[name])


@pytest.mark.parametrize("loss", START)
def test_training_starts_where_policy_and_reference_agree(curve, loss):
    first, *_, last = [row for row in curve(*DPO, f"method.loss={loss}") if "loss" in row]
    assert first["loss"] == pytest.approx(START[loss], rel=1e-6)
    assert first["rewards/accuracy"] == 0.5
    assert last["rewards/margin"] > 0
    assert last["rewards/accuracy"] > 0.9


@pytest.mark.parametrize("method", ["simpo", "cpo", "orpo"])
def test_methods_without_a_reference_learn_to_prefer(curve, method):
    rows = [row for row in curve(f"method={method}", "data=arithmetic_pairs", "optimizer.lr=3e-3", "max_steps=12") if "val/loss" in row]
    assert rows[-1]["val/loss"] < rows[0]["val/loss"]
    assert rows[-1]["val/rewards/margin"] > rows[0]["val/rewards/margin"]


@pytest.mark.parametrize("name", SAME)
def test_the_curve_does_not_depend_on_the_split_or_the_layout(curve, name):
    assert_same(curve(*DPO, *SAME[name]), curve(*DPO))


def test_adapters_switched_off_are_the_frozen_copy(curve):
    assert_same(curve(*ADAPTED, "method.reference=copy"), curve(*ADAPTED, "method.reference=adapters"))


def test_the_likelihood_term_raises_the_chosen_answers(curve):
    with_term, without = (curve(*DPO, f"method.sft_weight={weight}")[-1] for weight in (5.0, 0.0))
    assert with_term["val/logps/chosen"] > without["val/logps/chosen"]
