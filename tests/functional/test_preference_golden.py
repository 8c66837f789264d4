"""Pair losses and their gradients beside TRL's, from files made by tests/golden/make_preference.py."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from posttrain.functional import divergences, preference
from posttrain.types import PairLogps

FOLDER = Path(__file__).parents[1] / "golden"
OURS = {
    "sigmoid": partial(preference.sigmoid, beta=0.1),
    "cdpo": partial(preference.sigmoid, beta=0.3, label_smoothing=0.2),
    "hinge": partial(preference.hinge, beta=0.2),
    "ipo_summed": partial(preference.ipo, beta=0.1, per_token=False),
    "exo": partial(preference.exo, beta=0.1, label_smoothing=1e-3),
    "nca": partial(preference.nca, beta=0.1),
    "robust": partial(preference.robust, beta=0.1, label_smoothing=0.1),
    "bco": partial(preference.bco, beta=0.1),
    "sppo": partial(preference.sppo, beta=0.1),
    "aot": partial(preference.aot, beta=0.1, label_smoothing=0.1),
    "aot_unpaired": partial(preference.aot_unpaired, beta=0.1),
    "apo_zero": partial(preference.apo_zero, beta=0.1),
    "apo_down": partial(preference.apo_down, beta=0.1),
    "discopop": partial(preference.discopop, beta=0.1, tau=0.05),
    "js": partial(preference.sigmoid, beta=0.1, divergence=divergences.jensen_shannon),
    "alpha": partial(preference.sigmoid, beta=0.1, divergence=partial(divergences.alpha, alpha=0.75)),
    "cpo": partial(preference.cpo, beta=0.1, label_smoothing=0.1),
    "simpo": partial(preference.simpo, beta=2.0, gamma=0.5),
    "alpha_po": partial(preference.simpo, beta=2.0, gamma=0.5, alpha=0.25),
    "orpo": partial(preference.orpo, beta=0.1),
}
FLOAT32_INSIDE = ("orpo",)


def golden():
    for file in sorted(FOLDER.glob("preference_trl_*.json")):
        read = json.loads(file.read_text())
        for name, case in read["cases"].items():
            yield pytest.param(name, read["inputs"], case, id=f"{name}-trl-{read['made_with']['trl']}")


def test_every_case_is_compared():
    assert {parameter.values[0] for parameter in golden()} == set(OURS)


@pytest.mark.parametrize(("name", "inputs", "case"), list(golden()))
def test_value_and_gradient(name, inputs, case):
    given = {key: torch.tensor(row, dtype=torch.float64) for key, row in inputs.items()}
    chosen, rejected = given["chosen"].requires_grad_(), given["rejected"].requires_grad_()
    tens = torch.full_like(chosen, 10.0)
    baseline = torch.tensor(0.125 / 0.1, dtype=torch.float64) if name == "bco" else None  # theirs: a mean of rewards
    losses = OURS[name](PairLogps(chosen, rejected, tens, tens, given["reference_chosen"], given["reference_rejected"], baseline))
    losses.sum().backward()
    tolerance = 2e-5 if name in FLOAT32_INSIDE else 1e-9
    for got, want in ((losses, "losses"), (chosen.grad, "d_chosen"), (rejected.grad, "d_rejected")):
        assert got.tolist() == pytest.approx(case[want], rel=tolerance, abs=1e-10), want  # softplus rounds to a line above 20
