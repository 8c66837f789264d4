"""Losses on given targets: negative log-likelihood, DFT, and the regularisers that go with them.

Every function gets the log-probabilities of the targets, their loss weights and the step's denominator (the sum of weights over the
whole optimizer step), and returns this micro-batch's part of the loss and metrics; parts of a step add up to the step's loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from posttrain.errors import DataError, Problem
from posttrain.functional.reductions import step_mean
from posttrain.types import TokenTree

Metrics = dict[str, Tensor]
LARGEST_EXPONENT = 709.0  # a float holds its exponential


def nll(logps: Tensor, weight: Tensor, denominator: float) -> tuple[Tensor, Metrics]:
    """Weighted mean negative log-likelihood: -sum_t w_t log p_t / denominator. logps, weight: [N], nats."""
    return step_mean(-logps, weight, denominator), {}


def dft(logps: Tensor, weight: Tensor, denominator: float) -> tuple[Tensor, Metrics]:
    """Dynamic fine-tuning: -sum_t w_t sg(p_t) log p_t / denominator, sg stopping the gradient (arXiv:2508.05629, eq. 9).

    logps, weight: [N], nats. The plain negative log-likelihood is reported as `nll`.
    """
    loss = step_mean(-logps.detach().exp() * logps, weight, denominator)
    return loss, {"nll": step_mean(-logps.detach(), weight, denominator)}


# Losses whose derivative in every log-probability depends on its weight alone, up to a factor: as which function of the weights [N].
SLOPES: Mapping[Callable[..., object], Callable[[Tensor], Tensor]] = {nll: torch.neg}


def label_smoothing(loss: Tensor, mean_logps: Tensor, weight: Tensor, denominator: float, *, epsilon: float) -> Tensor:
    """(1 - epsilon) loss - epsilon mean_v log p(v): targets mixed with the uniform distribution (arXiv:1512.00567, section 7).

    mean_logps: [N], mean over the vocabulary of the log-probabilities. Raises ValueError unless 0 <= epsilon < 1.
    """
    if not 0 <= epsilon < 1:
        raise ValueError(f"label smoothing must lie in [0, 1), got {epsilon}")
    return (1 - epsilon) * loss + epsilon * step_mean(-mean_logps, weight, denominator)


def z_loss(lse: Tensor, weight: Tensor, denominator: float) -> Tensor:
    """Mean squared log-partition: sum_t w_t lse_t^2 / denominator (PaLM, arXiv:2204.02311, section 5); keeps logits from drifting."""
    return step_mean(lse.square(), weight, denominator)


def likelihood_sums(logps: Tensor, correct: Tensor | None, weight: Tensor) -> dict[str, Tensor]:
    """What `likelihood_metrics` are computed from, float64 scalars that add up over micro-batches and ranks: sum_nll (nats, weighted),
    sum_weight, sum_correct (weighted). logps, correct (bool), weight: [N]. Raises ValueError without `correct`."""
    if correct is None:
        raise ValueError("the statistics must tell which targets are correct")
    wide = weight.double()
    return {"sum_nll": (-logps.double() * wide).sum(), "sum_weight": wide.sum(), "sum_correct": (correct.double() * wide).sum()}


def likelihood_rows(logps: Tensor, correct: Tensor | None, tree: TokenTree) -> dict[str, Tensor]:
    """`likelihood_sums` of each of a tree's examples, [E] on the host."""
    if correct is None:
        raise ValueError("the statistics must tell which targets are correct")
    # On the host: atomic additions of a device come in any order, and validation must give the same number twice.
    wide, owner = tree.weight.double().cpu(), tree.example[tree.segment.cpu()]
    parts = {"sum_nll": -logps.detach().double().cpu() * wide, "sum_weight": wide, "sum_correct": correct.double().cpu() * wide}
    examples = int(tree.example.max()) + 1
    return {name: torch.zeros(examples, dtype=torch.float64).index_add_(0, owner, part) for name, part in parts.items()}


def likelihood_scores(rows: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Value and weight of each example in `loss` and `token_accuracy`, whose weighted means these are. rows: of `likelihood_rows`.

    Without a target, an example has the value NaN and the weight 0.
    """
    weight = rows["sum_weight"]
    return {"loss": (rows["sum_nll"] / weight, weight), "token_accuracy": (rows["sum_correct"] / weight, weight)}


def likelihood_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Mean negative log-likelihood of a target token (nats), its exponential, and the share of targets that are the argmax.

    sums: of `likelihood_sums`. Raises DataError if no target carries a weight.
    """
    if sums["sum_weight"] <= 0:
        raise DataError(Problem("data.val", "no token of the validation data is a target", "see `posttrain data` for what is trained"))
    loss = sums["sum_nll"] / sums["sum_weight"]
    perplexity = math.exp(loss) if loss < LARGEST_EXPONENT else math.inf
    return {"loss": loss, "perplexity": perplexity, "token_accuracy": sums["sum_correct"] / sums["sum_weight"]}
