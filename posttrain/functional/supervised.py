"""Losses on given targets: negative log-likelihood, DFT, and the regularisers that go with them.

Every function gets the log-probabilities of the targets, their loss weights and the step's denominator (the sum of weights over the
whole optimizer step), and returns this micro-batch's part of the loss and metrics; parts of a step add up to the step's loss.
"""

from __future__ import annotations

from torch import Tensor

from posttrain.functional.reductions import step_mean

Metrics = dict[str, Tensor]


def nll(logps: Tensor, weight: Tensor, denominator: float) -> tuple[Tensor, Metrics]:
    """Weighted mean negative log-likelihood: -sum_t w_t log p_t / denominator. logps, weight: [N], nats."""
    return step_mean(-logps, weight, denominator), {}


def dft(logps: Tensor, weight: Tensor, denominator: float) -> tuple[Tensor, Metrics]:
    """Dynamic fine-tuning: -sum_t w_t sg(p_t) log p_t / denominator, sg stopping the gradient (arXiv:2508.05629, eq. 9).

    logps, weight: [N], nats. The plain negative log-likelihood is reported as `nll`.
    """
    loss = step_mean(-logps.detach().exp() * logps, weight, denominator)
    return loss, {"nll": step_mean(-logps.detach(), weight, denominator)}


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
