"""Weights for a sampler that is not the trainer, by hand."""

import math
from functools import partial

import pytest
import torch

from posttrain.functional import importance

D = (0.5, -0.25, 0.0, -1.0, 2.0)  # of answers of 2, 0 and 3 tokens
SEQUENCE = torch.tensor([0, 0, 2, 2, 2])
SAMPLER = torch.full((5,), -1.5, dtype=torch.float64)
TRAINER = SAMPLER + torch.tensor(D, dtype=torch.float64)
correction = partial(importance.correction, TRAINER, SAMPLER, SEQUENCE, 3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [math.exp(0.5), math.exp(-0.25), 1, math.exp(-1), 2]),
        ({"least": 0.5}, [math.exp(0.5), math.exp(-0.25), 1, 0.5, 2]),
        ({"mode": "mask", "least": 0.5}, [math.exp(0.5), math.exp(-0.25), 1, 0, 0]),
        ({"level": "sequence"}, [*[math.exp(0.25)] * 2, 2, 2, 2]),
        ({"level": "sequence", "mode": "mask"}, [*[math.exp(0.25)] * 2, 0, 0, 0]),
        ({"most": None}, [math.exp(d) for d in D]),
    ],
)
def test_weights(options, expected):
    assert correction(**options)[0].tolist() == pytest.approx(expected)


def test_statistics_come_before_the_bounds():
    _, sums = correction(level="sequence")
    found = importance.mismatch(sums)
    assert found["mismatch/abs"] == pytest.approx(3.75 / 5)
    assert found["mismatch/max"] == pytest.approx(2)
    assert found["mismatch/kl"] == pytest.approx(sum(math.exp(d) - 1 - d for d in D) / 5)
    assert found["mismatch/outside"] == pytest.approx(3 / 5)


def test_equal_engines_weigh_nothing():
    for level in ("token", "sequence"):
        weights, sums = importance.correction(SAMPLER, SAMPLER, SEQUENCE, 3, level=level, mode="mask", least=0.5)
        assert torch.equal(weights, torch.ones_like(SAMPLER))
        assert set(importance.mismatch(sums).values()) == {0.0}


def test_no_gradient_and_far_answers():
    trainer = TRAINER.clone().requires_grad_()
    weights, _ = importance.correction(trainer, SAMPLER - 1000, SEQUENCE, 3, level="sequence")
    assert not weights.requires_grad
    assert weights.tolist() == [2.0] * 5
    assert importance.correction(trainer, SAMPLER - 1000, SEQUENCE, 3, mode="mask")[0].tolist() == [0.0] * 5


def test_nothing_sampled():
    none = torch.empty(0, dtype=torch.float64)
    weights, sums = importance.correction(none, none, torch.empty(0, dtype=torch.int64), 2)
    assert len(weights) == 0
    assert set(importance.mismatch(sums).values()) == {0.0}


@pytest.mark.parametrize("options", [{"level": "answer"}, {"mode": "clip"}, {"least": 3.0}, {"least": -1.0}])
def test_refusals(options):
    with pytest.raises(ValueError, match=r"level|mode|least"):
        correction(**options)
    with pytest.raises(ValueError, match="finite"):
        importance.correction(TRAINER * math.nan, SAMPLER, SEQUENCE, 3)
