"""Validation loss, perplexity and token accuracy of next-token prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from posttrain.errors import DataError, Problem
from posttrain.types import TokenStats, TokenTree

Score = Callable[[TokenTree], TokenStats]


def validate(score: Score, batches: Iterable[TokenTree]) -> dict[str, float]:
    """Sums over all targets of `batches`, in float64: add them up over ranks, then `summarise(**sums)`.

    Args:
        score: the model; must return `logps` and `correct` for the targets of a tree.
        batches: micro-batches of this rank, on the model's device.

    Returns:
        sum_nll (nats, weighted), sum_weight, sum_correct (weighted).
    """
    totals = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for tree in batches:
            stats = score(tree)
            if stats.correct is None:
                raise ValueError("score must return TokenStats.correct")
            weight = tree.weight.double()
            sums = (-stats.logps.double() * weight).sum(), weight.sum(), (stats.correct.double() * weight).sum()
            totals += torch.stack(sums).cpu()
    nll, weight_sum, correct = totals.tolist()
    return {"sum_nll": nll, "sum_weight": weight_sum, "sum_correct": correct}


def summarise(sum_nll: float, sum_weight: float, sum_correct: float) -> dict[str, float]:
    """Mean negative log-likelihood of a target token (nats), its exponential, and the share of targets that are the argmax.

    Raises:
        DataError: no target carries a weight.
    """
    if sum_weight <= 0:
        raise DataError(Problem("data.val", "no token of the validation data is a target", "see `posttrain data` for what is trained"))
    loss = sum_nll / sum_weight
    return {"loss": loss, "perplexity": _exp(loss), "token_accuracy": sum_correct / sum_weight}


def _exp(value: float) -> float:
    """exp, infinite where a float cannot hold it."""
    return math.exp(value) if value < 709.0 else math.inf
