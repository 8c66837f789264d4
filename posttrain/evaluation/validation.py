"""Validation: sums over held-out micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from posttrain.functional.supervised import likelihood_sums
from posttrain.types import TokenStats, TokenTree

Score = Callable[[TokenTree], TokenStats]
Parts = Callable[[TokenTree], Mapping[str, Tensor]]


def likelihood_of(score: Score) -> Parts:
    """The likelihood's parts from a model that returns `logps` and `correct` for the targets of a tree."""

    def parts(tree: TokenTree) -> Mapping[str, Tensor]:
        stats = score(tree)
        return likelihood_sums(stats.logps, stats.correct, tree.weight)

    return parts


def validate(parts: Parts, batches: Iterable[TokenTree], *, keep: Callable[[Mapping[str, Tensor]], None] | None = None) -> dict[str, float]:
    """Sums of what `parts` gives for each of `batches`, in float64; they add up over ranks.

    batches: micro-batches of this rank, on the model's device. A part may be a scalar, or a value for each example of the batch; `keep`
    is given those of each batch.
    """
    totals: dict[str, Tensor] = {}
    with torch.no_grad():
        for tree in batches:
            found = parts(tree)
            if keep is not None:
                keep({name: value for name, value in found.items() if value.ndim})
            for name, value in found.items():
                part = value.detach().double().sum()
                totals[name] = totals[name] + part if name in totals else part
    return {name: float(value) for name, value in totals.items()}
