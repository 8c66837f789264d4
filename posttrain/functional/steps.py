"""What is reported of a process reward model: right steps, wrong steps found, and the first wrong step of an answer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def step_sums(logits: Tensor, labels: Tensor, trace: Tensor) -> dict[str, Tensor]:
    """Counts that add up over batches and that `step_metrics` reads.

    logits: of wrong and right, [M, 2]. labels: 1 right, 0 wrong, [M]. trace: the answer that each step belongs to, [M], ascending.
    """
    said, true = logits.argmax(1) == 0, labels == 0
    traces = trace.unique()
    found, there = first_error(said, trace, traces), first_error(true, trace, traces)
    broken = there < len(trace)
    counts = {
        "steps": torch.ones_like(labels), "agree": said == true, "hits": said & true, "called": said, "wrong": true,
        "broken": broken, "broken_found": broken & (found == there), "sound": ~broken, "sound_found": ~broken & (found == there),
    }  # fmt: skip
    return {name: value.double().sum() for name, value in counts.items()}


def first_error(wrong: Tensor, trace: Tensor, traces: Tensor) -> Tensor:
    """Place of the first wrong step of each of `traces`, [A]; M for answers without one. wrong: bool [M]."""
    place = torch.where(wrong, torch.arange(len(wrong), device=wrong.device), len(wrong))
    return torch.full_like(traces, len(wrong)).scatter_reduce_(0, torch.searchsorted(traces, trace), place, "amin")


def step_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Metrics from the sums of `step_sums`; NaN where there is nothing to count.

    accuracy: of steps; base_rate: that of calling every step what most of them are. error_f1: of finding wrong steps. first_error: share of
    the answers whose first wrong step, or whose soundness, is told. process_f1: harmonic mean of that share among the broken and among the
    sound answers (ProcessBench, arXiv:2412.06559, section 3.4).
    """
    wrong = sums["wrong"] / sums["steps"]
    broken, sound = _share(sums["broken_found"], sums["broken"]), _share(sums["sound_found"], sums["sound"])
    return {
        "accuracy": sums["agree"] / sums["steps"],
        "base_rate": max(wrong, 1 - wrong),
        "error_f1": _share(2 * sums["hits"], sums["called"] + sums["wrong"]),
        "first_error": _share(sums["broken_found"] + sums["sound_found"], sums["broken"] + sums["sound"]),
        "process_f1": _share(2 * broken * sound, broken + sound),
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
