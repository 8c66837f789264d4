"""The report of a process reward model: is it as sure of a step as it is right, and how are right and wrong steps told apart?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from posttrain.functional.calibration import calibration_error, reliability_sums, reliability_table
from posttrain.runs.plots import BLUE, ORANGE
from posttrain.runs.reports.pairs import draw_reliability, dress
from posttrain.runs.reports.registry import Columns, report

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@report("steps")
def step_report(outcomes: Columns) -> tuple[dict[str, Any], Figure]:
    """outcomes: probability `right` and `label` of each step, [M] each."""
    from matplotlib.figure import Figure

    right, label = outcomes["right"], outcomes["label"]
    logit = torch.logit(torch.from_numpy(right), eps=1e-12)
    sums = reliability_sums(torch.where(torch.from_numpy(label) > 0, logit, -logit))
    table = {
        "steps": len(right),
        "wrong": int((label == 0).sum()),
        "accuracy": float(((right > 0.5) == (label > 0)).mean()),
        "ece": calibration_error(sums),
        "reliability": reliability_table(sums),
    }
    figure = Figure(figsize=(9, 4.2), dpi=130, layout="constrained")
    one, two = figure.subplots(1, 2)
    draw_reliability(one, table)
    two.hist(
        [right[label == 0], right[label > 0]],
        bins=np.linspace(0, 1, 31).tolist(),
        color=[ORANGE, BLUE],
        label=["wrong steps", "right steps"],
    )
    two.set(xlabel="probability that the step is right", ylabel="steps", yscale="log")
    two.legend(frameon=False, fontsize=8)
    dress(two, f"steps, accuracy {table['accuracy']:.3f}")
    return table, figure
