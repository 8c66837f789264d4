"""What runs cost, and how their quality grew with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from posttrain.runs.comparison.arms import Arm
from posttrain.runs.comparison.read import Run
from posttrain.runs.records import read_metrics


@dataclass(frozen=True)
class Cost:
    """Means over an arm's runs. flops: of training, with what is sampled and judged for it. hours: wall time inside training.

    tokens: that were trained on. peak_bytes: the most memory that a run held.
    """

    flops: float
    hours: float
    tokens: float
    peak_bytes: float


def cost_of(arm: Arm) -> Cost:
    """What an arm cost."""

    def over(key: str) -> np.ndarray:
        return np.array([float(run.result[key]) for run in arm.runs])

    return Cost(over("flops").mean(), over("train_seconds").mean() / 3600, over("tokens").mean(), over("peak_memory_bytes").max())


@dataclass(frozen=True)
class Curve:
    """A run's metric as it was measured on the way, the end last: after so many floating-point operations, and hours of wall time."""

    flops: tuple[float, ...]
    hours: tuple[float, ...]
    values: tuple[float, ...]


def curve_of(run: Run, metric: str) -> Curve:
    """Operations between evaluations are shared out by the tokens trained on; without any evaluation on the way only the end is there."""
    rows, times = read_metrics(run.folder / "metrics.jsonl"), read_metrics(run.folder / "throughput.jsonl")
    steps = [0, *(int(row["step"]) for row in times)]
    seconds = [0.0, *accumulate(float(row["seconds"]) for row in times)]
    trained = [(int(row["step"]), float(row["tokens"])) for row in rows if "tokens" in row]
    at, tokens = ([0, *column] for column in zip(*trained, strict=True)) if trained else ([0], [0.0])
    measured = {int(row["step"]): float(row[metric]) for row in rows if metric in row and int(row["step"]) < int(run.result["steps"])}
    share = np.interp(list(measured), at, tokens) / max(float(run.result["tokens"]), 1.0)
    spent = np.interp(list(measured), steps, seconds) / 3600
    flops, hours = float(run.result["flops"]), float(run.result["train_seconds"]) / 3600
    return Curve((*(share * flops).tolist(), flops), (*spent.tolist(), hours), (*measured.values(), run.metrics[metric]))


def curves_of(arms: Sequence[Arm], metric: str) -> list[list[Curve]]:
    """Of each arm's runs."""
    return [[curve_of(run, metric) for run in arm.runs] for arm in arms]
