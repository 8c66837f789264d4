"""What runs cost, and how their quality grew with it. A pipeline's stages add up, those that were reused included; so
does a run that one starts from (entering)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from posttrain.runs.comparison.arms import Arm
from posttrain.runs.comparison.read import Run
from posttrain.runs.records import read_metrics

METRICS, TIMES = "metrics.jsonl", "throughput.jsonl"
EQUAL = 0.02  # relative


@dataclass(frozen=True)
class Cost:
    """Means over an arm's runs. flops: of training, with what is sampled and judged for it. hours: wall time inside training.

    device_hours: the same times the devices. tokens: that were trained on. generated: that were sampled for training. peak_bytes: the
    most memory that a run held.
    """

    flops: float
    hours: float
    device_hours: float
    tokens: float
    generated: float
    peak_bytes: float


def cost_of(arm: Arm) -> Cost:
    """What an arm cost."""
    each = [_cost(run) for run in arm.runs]
    names = ("flops", "hours", "device_hours", "tokens", "generated")
    means = {name: float(np.mean([getattr(cost, name) for cost in each])) for name in names}
    return Cost(**means, peak_bytes=max(cost.peak_bytes for cost in each))


def _cost(run: Run) -> Cost:
    """Of one run."""
    parts = run.paid
    hours = [_number(part, "train_seconds") / 3600 for part in parts]
    return Cost(
        sum(_number(part, "flops") for part in parts),
        sum(hours),
        sum(some * part.devices for some, part in zip(hours, parts, strict=True)),
        sum(_number(part, "tokens") for part in parts),
        sum(_generated(part) for part in parts),
        max(_number(part, "peak_memory_bytes") for part in parts),
    )


def _number(run: Run, key: str) -> float:
    return float(run.result[key])


def _generated(run: Run) -> float:
    """Tokens that were sampled, as the last line that counts them says; none for a method that samples nothing."""
    return next((float(row["generated"]) for row in reversed(read_metrics(run.folder / METRICS)) if "generated" in row), 0.0)


@dataclass(frozen=True)
class Curve:
    """A run's metric as it was measured on the way, the end last: after so many floating-point operations, and hours of wall time.

    ends: places of the values at which a pipeline's earlier stages ended.
    """

    flops: tuple[float, ...]
    hours: tuple[float, ...]
    values: tuple[float, ...]
    ends: tuple[int, ...] = ()


def curve_of(run: Run, metric: str) -> Curve:
    """Stages one after the other; those whose metric is another quantity, or that did not measure it, only cost."""
    last, paid = run.parts[-1], run.paid
    counted = [any(part is own for own in run.parts) and _comparable(part, last, metric) for part in paid]
    pieces = [_piece(part, metric) if counts else Curve((), (), ()) for part, counts in zip(paid, counted, strict=True)]
    spent = [0.0, *accumulate(_number(part, "flops") for part in paid)]
    passed = [0.0, *accumulate(_number(part, "train_seconds") / 3600 for part in paid)]
    counts = [*accumulate(len(piece.values) for piece in pieces)]
    values = [value for piece in pieces for value in piece.values]
    values[-1] = run.metrics[metric]
    return Curve(
        tuple(before + some for piece, before in zip(pieces, spent, strict=False) for some in piece.flops),
        tuple(before + some for piece, before in zip(pieces, passed, strict=False) for some in piece.hours),
        tuple(values),
        tuple(count - 1 for before, count in pairwise([0, *counts[:-1]]) if count > before),
    )


def _comparable(part: Run, last: Run, metric: str) -> bool:
    """Whether a stage measured the same quantity: val/* are the method's own, eval/* are of the answers."""
    return part is last or (metric in part.metrics and (metric.startswith("eval/") or part.result["method"] == last.result["method"]))


def _piece(run: Run, metric: str) -> Curve:
    """Operations between evaluations are shared out by the tokens trained on; without any evaluation on the way only the end is there."""
    rows, times = read_metrics(run.folder / METRICS), read_metrics(run.folder / TIMES)
    steps = [0, *(int(row["step"]) for row in times)]
    seconds = [0.0, *accumulate(float(row["seconds"]) for row in times)]
    trained = [(int(row["step"]), float(row["tokens"])) for row in rows if "tokens" in row]
    at, tokens = ([0, *column] for column in zip(*trained, strict=True)) if trained else ([0], [0.0])
    measured = {int(row["step"]): float(row[metric]) for row in rows if metric in row and int(row["step"]) < int(run.result["steps"])}
    share = np.interp(list(measured), at, tokens) / max(float(run.result["tokens"]), 1.0)
    spent = np.interp(list(measured), steps, seconds) / 3600
    flops, hours = _number(run, "flops"), _number(run, "train_seconds") / 3600
    end = run.metrics.get(metric, float("nan"))
    return Curve((*(share * flops).tolist(), flops), (*spent.tolist(), hours), (*measured.values(), end))


def curves_of(arms: Sequence[Arm], metric: str) -> list[list[Curve]]:
    """Of each arm's runs."""
    return [[curve_of(run, metric) for run in arm.runs] for arm in arms]


def equal(costs: Sequence[float]) -> bool:
    """Whether several cost the same, as far as a budget can be kept: runs stop at a step's end, within 1 % of it."""
    return len(costs) > 1 and 0 < max(costs) <= (1 + EQUAL) * min(costs)


def pareto(costs: Sequence[float], values: Sequence[float], *, lower: bool) -> list[int]:
    """Places that no other one beats: none is better for at most as much, or as good for less. The cheapest first.

    Costs that are `equal` are the same: a thousandth less makes nothing worth its money.
    """
    sign = -1.0 if lower else 1.0
    points = [(cost, -sign * value) for cost, value in zip(costs, values, strict=True)]
    kept = [
        place for place, (cost, bad) in enumerate(points)
        if not any((b < bad and c <= cost * (1 + EQUAL)) or (b == bad and c * (1 + EQUAL) < cost) for c, b in points)
    ]  # fmt: skip
    return sorted(kept, key=lambda place: points[place])
