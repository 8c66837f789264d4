"""Losses on judged answers and their gradients beside TRL's, from the file that tests/golden/make_preference.py makes."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from posttrain.functional import feedback
from posttrain.methods.parts.running import RunningMean
from posttrain.types import AnswerLogps

MADE = json.loads((Path(__file__).parents[1] / "golden" / "preference_trl_0.28.0.json").read_text())["feedback"]
GIVEN = {name: torch.tensor(row, dtype=torch.float64) for name, row in MADE["inputs"].items()}
OURS = {
    "kto": partial(feedback.kto, beta=0.1),
    "kto_weighted": partial(feedback.kto, beta=0.3, desirable_weight=1.5, undesirable_weight=0.75),
    "kto_below_zero": partial(feedback.kto, beta=0.1),
    "apo_zero_unpaired": partial(feedback.apo_zero_unpaired, beta=0.1, desirable_weight=1.5, undesirable_weight=0.75),
    "bco_unpaired": partial(feedback.bco_unpaired, beta=0.1),
}


def joined(prefix: str) -> torch.Tensor:
    return torch.cat([GIVEN[f"{prefix}desirable"], GIVEN[f"{prefix}undesirable"]])


def test_every_case_is_compared():
    assert MADE["cases"].keys() == OURS.keys()


@pytest.mark.parametrize("name", OURS)
def test_value_and_gradient(name):
    case, logps = MADE["cases"][name], joined("").requires_grad_()
    desirable = torch.arange(len(logps)) < len(GIVEN["desirable"])
    # TRL's BCO subtracts a mean of rewards, ours of log-ratios
    unit = 0.1 if name.startswith("bco") else 1.0
    baseline = torch.tensor(case["baseline"] / unit, dtype=torch.float64)
    losses = OURS[name](AnswerLogps(logps, joined("reference_"), torch.full_like(logps, 10.0), desirable, baseline))
    losses.sum().backward()
    assert losses.tolist() == pytest.approx(case["losses"], rel=1e-9, abs=0)
    assert logps.grad.tolist() == pytest.approx(case["d_logps"], rel=1e-9, abs=0)


def test_the_running_mean_of_rewards():
    # theirs takes in the step at hand before it is subtracted, and rounds to float32
    running = RunningMean()
    earlier, now = torch.tensor([0.5, -1.25, 2.0]), 0.1 * (joined("") - joined("reference_"))
    for rewards in (earlier, now):
        running.add(rewards.mean().item(), count=len(rewards))
    assert running.mean.item() == pytest.approx(MADE["cases"]["bco_unpaired"]["baseline"], abs=1e-6)
