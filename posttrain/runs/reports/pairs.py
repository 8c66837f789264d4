"""The report of a reward model on pairs: does the better answer win, is the model as sure as it is right, does length decide?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from posttrain.functional.calibration import accuracy_by_length, calibration_error, correlation, reliability_sums, reliability_table
from posttrain.functional.pairs import preferred
from posttrain.runs.plots import BLUE, ORANGE
from posttrain.runs.reports.registry import Columns, report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 10


@report("pairs")
def pair_report(outcomes: Columns) -> tuple[dict[str, Any], Figure]:
    """outcomes: rewards `chosen`, `rejected` and answer lengths `chosen_length`, `rejected_length`, [P] each."""
    from matplotlib.figure import Figure

    chosen, rejected, long, short = (
        torch.from_numpy(outcomes[name]) for name in ("chosen", "rejected", "chosen_length", "rejected_length")
    )
    margin, sums = chosen - rejected, reliability_sums(chosen - rejected, bins=BINS)
    counts, edges = np.histogram(margin.numpy(), bins=bins_around_zero(margin.numpy()))
    table = {
        "pairs": len(margin),
        "accuracy": float(preferred(margin).mean()),
        "ece": calibration_error(sums),
        "margin": {
            "mean": float(margin.mean()),
            "std": float(margin.std(unbiased=False)),
            "counts": counts.tolist(),
            "edges": edges.tolist(),
        },
        "reliability": reliability_table(sums),
        "accuracy_by_length_difference": accuracy_by_length(margin, long - short),
        "length_bias": {
            "reward": correlation(torch.cat([chosen, rejected]), torch.cat([long, short])),
            "margin": correlation(margin, long - short),
        },
    }
    figure = Figure(figsize=(13, 4.2), dpi=130, layout="constrained")
    one, two, three = figure.subplots(1, 3)
    draw_reliability(one, table)
    draw_margins(two, margin.numpy(), edges)
    draw_lengths(three, table)
    return table, figure


def draw_reliability(axes: Axes, table: dict[str, Any]) -> None:
    """Accuracy over confidence, a bar a bin; the number of pairs stands at its foot."""
    rows = [row for row in table["reliability"] if row["pairs"]]
    axes.plot([0.5, 1], [0.5, 1], color="0.5", linestyle="--", linewidth=1, label="as sure as right")
    width = 0.5 / BINS
    axes.bar(
        [row["from"] for row in rows],
        [row["accuracy"] for row in rows],
        width=width,
        align="edge",
        color=BLUE,
        alpha=0.6,
        edgecolor="white",
    )
    axes.plot([row["confidence"] for row in rows], [row["accuracy"] for row in rows], color=ORANGE, marker="o", markersize=5, linewidth=1)
    for row in rows:
        axes.text(row["from"] + width / 2, 0.02, f"{row['pairs']:.0f}", ha="center", fontsize=7)
    axes.set(xlim=(0.5, 1), ylim=(0, 1.05), xlabel="confidence: sigmoid of the margin's size", ylabel="accuracy")
    dress(axes, f"reliability, ECE {table['ece']:.3g}")
    axes.legend(loc="upper left", fontsize=8, edgecolor="none", framealpha=0.8)


def bins_around_zero(values: np.ndarray, count: int = 40) -> np.ndarray:
    """About `count` equal bins that cover [N] values, zero between two of them."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    width = (high - low or 1.0) / count
    return width * np.arange(np.floor(low / width), np.ceil(high / width) + 1)


def draw_margins(axes: Axes, margin: np.ndarray, edges: np.ndarray) -> None:
    """How far apart chosen and rejected answers are; left of zero the rejected one won."""
    axes.hist([margin[margin <= 0], margin[margin > 0]], bins=edges.tolist(), stacked=True, color=[ORANGE, BLUE])
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set(xlabel="reward of the chosen minus the rejected answer", ylabel="pairs")
    dress(axes, f"margins, accuracy {np.mean(margin > 0):.3f}")


def draw_lengths(axes: Axes, table: dict[str, Any]) -> None:
    """Accuracy by how much longer the chosen answer is."""
    rows = table["accuracy_by_length_difference"]
    names = [_range(row["from"], row["to"]) for row in rows]
    axes.bar(range(len(rows)), [row["accuracy"] for row in rows], color=BLUE, alpha=0.8)
    for place, row in enumerate(rows):
        axes.text(place, 0.02, f"{row['pairs']:.0f}", ha="center", fontsize=7, color="white")
    axes.axhline(0.5, color="0.5", linestyle="--", linewidth=1)
    axes.set_xticks(range(len(rows)), names, fontsize=8)
    axes.set(ylim=(0, 1.05), xlabel="tokens the chosen answer is longer by", ylabel="accuracy")
    bias = table["length_bias"]["margin"]
    dress(axes, "length: no differences" if np.isnan(bias) else f"length, correlation with the margin {bias:.2f}")


def _range(low: float, high: float) -> str:
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


def dress(axes: Axes, title: str) -> None:
    """Title, grid, and no box."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
