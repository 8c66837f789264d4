"""Losses on judged answers against their formulas in plain arithmetic, and what they do where policy and reference agree."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from posttrain.data.tree import collate, tree_of
from posttrain.functional import feedback
from posttrain.types import AnswerLogps, StepShare

X = (1.0, -1.5, 0.5, -4.0)  # log-ratios of `answers()`
DESIRABLE = (True, True, False, False)
Z = 0.25


def logistic(x):
    return 1 / (1 + math.exp(-x))


def answers(*, baseline=Z, grad=False, logps=(-4.0, -9.5, -2.5, -7.0)):
    numbers = partial(torch.tensor, dtype=torch.float64)
    known = None if baseline is None else numbers(baseline, requires_grad=grad)
    return AnswerLogps(
        numbers(logps, requires_grad=grad), numbers((-5.0, -8.0, -3.0, -3.0)), numbers((4.0, 6.0, 1.0, 3.0)), torch.tensor(DESIRABLE), known
    )


# loss, and what a desirable and an undesirable answer cost by the paper's formula, from x and z
CASES = {
    "kto": (partial(feedback.kto, beta=0.4), lambda x, z: 1 - logistic(0.4 * (x - z)), lambda x, z: 1 - logistic(0.4 * (z - x))),
    "kto_weighted": (
        partial(feedback.kto, beta=0.4, desirable_weight=1.5, undesirable_weight=0.5),
        lambda x, z: 1.5 * (1 - logistic(0.4 * (x - z))),
        lambda x, z: 0.5 * (1 - logistic(0.4 * (z - x))),
    ),
    "bco": (
        partial(feedback.bco_unpaired, beta=0.4),
        lambda x, z: -math.log(logistic(0.4 * (x - z))),
        lambda x, z: -math.log(logistic(0.4 * (z - x))),
    ),
    "bco_weighted": (
        partial(feedback.bco_unpaired, beta=0.4, desirable_weight=1.5, undesirable_weight=0.5),
        lambda x, z: -1.5 * math.log(logistic(0.4 * (x - z))),
        lambda x, z: -0.5 * math.log(logistic(0.4 * (z - x))),
    ),
    "apo_zero": (partial(feedback.apo_zero_unpaired, beta=0.4), lambda x, z: 1 - logistic(0.4 * x), lambda x, z: logistic(0.4 * x)),
    "apo_zero_weighted": (
        partial(feedback.apo_zero_unpaired, beta=0.4, desirable_weight=1.5, undesirable_weight=0.5),
        lambda x, z: 1.5 * (1 - logistic(0.4 * x)),
        lambda x, z: 0.5 * logistic(0.4 * x),
    ),
}


@pytest.mark.parametrize("baseline", [Z, None])
@pytest.mark.parametrize("name", CASES)
def test_value(name, baseline):
    loss, good, bad = CASES[name]
    want = [(good if desirable else bad)(x, baseline or 0.0) for x, desirable in zip(X, DESIRABLE, strict=True)]
    assert loss(answers(baseline=baseline)).tolist() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(("name", "start"), [("kto", 0.5), ("bco", math.log(2)), ("apo_zero", 0.5)])
def test_value_where_policy_and_reference_agree(name, start):
    same = answers(baseline=None, logps=(-5.0, -8.0, -3.0, -3.0))
    assert CASES[name][0](same).tolist() == pytest.approx([start] * 4, rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_gradient(name):
    given = answers()

    def f(logps):
        return CASES[name][0](AnswerLogps(logps, given.reference, given.length, given.desirable, given.baseline))

    assert gradcheck(f, (given.logps.requires_grad_(),))


@pytest.mark.parametrize("name", CASES)
def test_a_step_down_raises_desirable_answers_and_lowers_undesirable_ones(name):
    given = answers(grad=True)
    CASES[name][0](given).sum().backward()
    assert (given.logps.grad[given.desirable] < 0).all()
    assert (given.logps.grad[~given.desirable] > 0).all()
    assert given.baseline.grad is None


@pytest.mark.parametrize("name", CASES)
def test_far_answers_stay_finite(name):
    given = answers(logps=(-1e4, 1e4, -1e4, 1e4), grad=True)
    losses = CASES[name][0](given)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert given.logps.grad.isfinite().all()


def test_a_baseline_of_another_type_leaves_the_losses_type():
    given = answers()
    single = AnswerLogps(given.logps.float(), given.reference.float(), given.length, given.desirable, given.baseline)
    assert feedback.kto(single).dtype == feedback.bco_unpaired(single).dtype == torch.float32


def test_answers_of_a_tree():
    def answer(prompt, weights, value):
        ids = np.arange(prompt + len(weights))
        return tree_of([(ids, np.array([0.0] * prompt + weights))], [value])

    # answers of 2, 3 (one token of half a weight, one context) and 1 trained tokens
    tree = collate([answer(2, [1, 1], 1.0), answer(1, [1, 0, 0.5, 1], 0.0), answer(3, [1], float("nan"))], StepShare(1.0, 3, 1))
    logps = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0], dtype=torch.float64)
    got = feedback.answer_logps(logps, 2 * logps, tree, baseline=torch.tensor(0.5))
    assert got.logps.tolist() == [-3.0, -10.0, -6.0]
    assert got.reference.tolist() == [-6.0, -20.0, -12.0]
    assert got.length.tolist() == [2.0, 2.5, 1.0]
    assert got.desirable.tolist() == [True, False, False]
    assert got.baseline.item() == 0.5
    assert gradcheck(lambda logps: feedback.answer_logps(logps, logps.detach(), tree).logps, (logps.requires_grad_(),))


def test_which_baseline_a_loss_reads():
    assert {feedback.function_of(loss) for loss in (feedback.kto, partial(feedback.kto, beta=0.3))} == feedback.MISMATCH
    assert feedback.function_of(partial(feedback.bco_unpaired)) in feedback.RUNNING_MEAN
    assert feedback.apo_zero_unpaired not in feedback.MISMATCH | feedback.RUNNING_MEAN
