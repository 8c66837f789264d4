"""The report of a reward model on rated answers: predictions over scores, and whether length decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from posttrain.functional.calibration import correlation
from posttrain.runs.plots import BLUE, ORANGE
from posttrain.runs.reports.pairs import dress
from posttrain.runs.reports.registry import Columns, report

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@report("ratings")
def rating_report(outcomes: Columns) -> tuple[dict[str, Any], Figure]:
    """outcomes: `reward`, `score` (NaN where there is none) and `length` of each answer, [A] each."""
    from matplotlib.figure import Figure

    reward, score, length = (torch.from_numpy(outcomes[name]) for name in ("reward", "score", "length"))
    known = ~score.isnan()
    table = {
        "answers": len(reward),
        "scored": int(known.sum()),
        "mean_absolute_error": float((reward - score)[known].abs().mean()),
        "correlation": correlation(reward[known], score[known]),
        "length_bias": {"reward": correlation(reward, length), "score": correlation(score[known], length[known])},
    }
    figure = Figure(figsize=(9, 4.2), dpi=130, layout="constrained")
    one, two = figure.subplots(1, 2)
    one.scatter(score[known].numpy(), reward[known].numpy(), s=8, alpha=0.4, color=BLUE)
    one.set(xlabel="score", ylabel="reward")
    dress(one, f"correlation {table['correlation']:.3f}")
    two.scatter(length.numpy(), reward.numpy(), s=8, alpha=0.4, color=ORANGE)
    two.set(xlabel="tokens of the answer", ylabel="reward")
    dress(two, f"length, correlation with the reward {correlation(reward, length):.2f}")
    return table, figure
