"""A weighted sum of pair losses."""

import math
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from posttrain.functional import preference
from posttrain.types import PairLogps


def pairs(chosen=(-4.0, -9.0), rejected=(-6.0, -7.5), baseline=0.2):
    numbers = partial(torch.tensor, dtype=torch.float64)
    lengths = numbers((4.0, 6.0)), numbers((5.0, 3.0))
    return PairLogps(numbers(chosen), numbers(rejected), *lengths, numbers((-5.0, -8.0)), numbers((-5.5, -8.0)), numbers(baseline))


def test_mpo_by_hand():
    # c = 1, -1; r = -0.5, 0.5; beta 0.5, but sigmoid has its own
    def log_logistic(x):
        return -math.log(1 + math.exp(-x))

    terms = {"sigmoid": {"weight": 0.8, "beta": 0.3, "label_smoothing": 0.1}, "bco": 0.2}
    want = [
        0.8 * (-0.9 * log_logistic(0.3 * (c - r)) - 0.1 * log_logistic(-0.3 * (c - r)))
        + 0.2 * (-log_logistic(0.5 * (c - 0.2)) - log_logistic(0.5 * (0.2 - r)))
        for c, r in ((1.0, -0.5), (-1.0, 0.5))
    ]
    assert preference.weighted(pairs(), beta=0.5, terms=terms).tolist() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("name", preference.LOSSES)
def test_one_term_is_the_loss_itself(name):
    assert torch.equal(preference.weighted(pairs(), beta=0.4, terms={name: 1.0}), preference.LOSSES[name](pairs(), beta=0.4))
    assert torch.equal(preference.weighted(pairs(), beta=0.4, terms={name: {}}), preference.LOSSES[name](pairs(), beta=0.4))


def test_gradient():
    given, terms = pairs(), {"sigmoid": 0.8, "ipo": {"weight": 0.01, "per_token": False}, "simpo": {"beta": 2.0}, "aot": 0.3}

    def f(chosen, rejected):
        rest = given.chosen_length, given.rejected_length, given.reference_chosen, given.reference_rejected, given.baseline
        return preference.weighted(PairLogps(chosen, rejected, *rest), terms=terms)

    assert gradcheck(f, (given.chosen.requires_grad_(), given.rejected.requires_grad_()))


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({}, "needs its losses"),
        ({"sigmod": 1.0}, "no pair loss 'sigmod'; known: aot, "),
        ({"weighted": 1.0}, "no pair loss 'weighted'"),
        ({"hinge": {"weight": 1.0, "label_smoothing": 0.1}}, "hinge has no option 'label_smoothing'"),
        ({"sigmoid": "much"}, "must be a number"),
        ({"sigmoid": -1.0}, "at least 0"),
        ({"sigmoid": {"beta": 0.0}}, "must be positive"),
        ({"sigmoid": {"label_smoothing": 0.7}}, "label_smoothing"),
    ],
)
def test_bad_terms(terms, words):
    with pytest.raises(ValueError, match=words):
        preference.weighted(pairs(), terms=terms)


def test_parts():
    assert preference.parts_of(preference.aot) == {preference.aot}
    assert preference.parts_of(partial(preference.bco, beta=0.3)) == {preference.bco}
    mixed = partial(preference.weighted, terms={"sigmoid": 0.8, "bco": 0.2, "unknown": 1.0})
    assert preference.parts_of(mixed) == {preference.sigmoid, preference.bco}
    assert preference.parts_of(preference.weighted) == set()
    assert preference.parts_of(mixed) & preference.BASELINE
    assert not preference.parts_of(mixed) & preference.WHOLE_STEP
