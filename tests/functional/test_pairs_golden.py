"""Pairs token by token beside TRL's: LD-DPO, WPO and losses per token, from the file that tests/golden/make_preference.py makes."""

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from posttrain.data.tree import collate, tree_of
from posttrain.functional import preference
from posttrain.functional.logprobs import token_stats
from posttrain.functional.pairs import likely_weights, pair_logps
from posttrain.types import StepShare

MADE = json.loads((Path(__file__).parents[1] / "golden" / "preference_trl_1.16.0.json").read_text())["tokens"]
PROMPT = [0, 0]
OURS = {  # loss, tail, whether pairs are weighted
    "ld_dpo": (preference.sigmoid, 0.4, False),
    "wpo": (preference.sigmoid, 1.0, True),
    "ld_wpo_ipo": (preference.ipo, 0.25, True),
    "sigmoid_norm": (preference.sigmoid_norm, 1.0, False),
    "ipo": (preference.ipo, 1.0, False),
}


def tree():
    sequences = [(np.array(PROMPT + ids), np.array([0.0] * len(PROMPT) + [1.0] * len(ids))) for ids in MADE["inputs"]["ids"]]
    pairs = [tree_of(sequences[row : row + 2]) for row in range(0, len(sequences), 2)]
    return collate(pairs, StepShare(1.0, len(pairs), 1))


def flat(answers):
    return torch.tensor(list(chain.from_iterable(answers)), dtype=torch.float64)


def test_every_case_is_compared():
    assert MADE["cases"].keys() == OURS.keys()


@pytest.mark.parametrize("name", OURS)
def test_value_and_gradient(name):
    loss, tail, weighted = OURS[name]
    logits, known = flat(MADE["inputs"]["logits"]).requires_grad_(), flat(MADE["inputs"]["reference"])
    pairs = tree()
    stats = token_stats(logits, torch.eye(4, dtype=torch.float64), pairs.target, collision=True)
    losses = loss(pair_logps(stats.logps, known, pairs, tail=tail), beta=0.3)
    if weighted:
        losses = losses * likely_weights(stats.logps, stats.log_collision, pairs)
    losses.sum().backward()
    case = MADE["cases"][name]
    assert losses.tolist() == pytest.approx(case["losses"], rel=1e-9, abs=0)
    torch.testing.assert_close(logits.grad, flat(case["d_logits"]), rtol=1e-9, atol=1e-15)
