"""The reward model's loss against TRL's, value and gradient, in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.functional.reward import bradley_terry

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "preference_trl_1.16.0.json").read_text())["rewards"]


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_value_and_gradient(name: str) -> None:
    case, rows = GOLDEN["cases"][name], {key: torch.tensor(row, dtype=torch.float64) for key, row in GOLDEN["inputs"].items()}
    chosen, rejected = rows["chosen"].requires_grad_(), rows["rejected"].requires_grad_()
    loss = bradley_terry(chosen, rejected, rows["gap"], **case["options"]).mean()
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    torch.testing.assert_close(chosen.grad, torch.tensor(case["d_chosen"], dtype=torch.float64), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(rejected.grad, torch.tensor(case["d_rejected"], dtype=torch.float64), rtol=1e-9, atol=1e-12)
