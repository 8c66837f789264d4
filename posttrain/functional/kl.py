"""Estimates of KL(pi || pi_ref) from the log-probabilities of sampled tokens (J. Schulman, Approximating KL divergence, 2020).

Written d = log pi - log pi_ref of a token that pi sampled. All three estimate the divergence; as a loss they are not alike. What the
expected gradient of each is, where samples come from pi and are held fixed (Tang and Munos, arXiv:2506.09477):

    k1 = d                  zero: the gradient of E[d] lies in the sampling, which the loss does not see
    k2 = d^2 / 2            of KL(pi || pi_ref): the right one
    k3 = e^-d - 1 + d       of KL(pi_ref || pi), the other direction; close to the right one while pi is close to pi_ref

Times the ratio pi / pi_old, with its gradient, k1 and k3 have the right gradient too, and stay unbiased off-policy. As a part of the
reward (RLOO, PPO) there is no gradient through the estimate, and k1 is the unbiased choice.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def k1(logps: Tensor, reference: Tensor, *, clamp: float | None = None) -> Tensor:
    """d, [N]: unbiased, of either sign. clamp: largest |d|; beyond it there is no gradient."""
    return _difference(logps, reference, clamp)


def k2(logps: Tensor, reference: Tensor, *, clamp: float | None = None) -> Tensor:
    """d^2 / 2, [N]: biased, small variance, the right gradient as a loss."""
    return _difference(logps, reference, clamp).square() / 2


def k3(logps: Tensor, reference: Tensor, *, clamp: float | None = None) -> Tensor:
    """e^-d - 1 + d, [N]: unbiased, never negative, small variance (GRPO, arXiv:2402.03300, eq. 4)."""
    d = _difference(logps, reference, clamp)
    return torch.expm1(-d) + d


def penalty(
    logps: Tensor, reference: Tensor, ratio: Tensor | None = None, *, estimator: Estimator = "k3", clamp: float | None = None
) -> Tensor:
    """KL(pi || pi_ref) per token, [N].

    ratio: [N], pi / pi_old with its gradient: the estimate is weighted by it, which makes value and gradient those of the divergence
        also for samples of pi_old (DeepSeek-V3.2, arXiv:2512.02556, section 3.1). Not with k2: its gradient is right by itself.
    clamp: largest |d|; other implementations take 20.
    Raises ValueError for an unknown estimator, and for k2 with a ratio.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"there is no estimator {estimator!r}; known: {', '.join(ESTIMATORS)}")
    if estimator == "k2" and ratio is not None:
        raise ValueError("k2 has the right gradient without a ratio, and the wrong one with it: take k1 or k3")
    estimate = ESTIMATORS[estimator](logps, reference, clamp=clamp)
    return estimate if ratio is None else ratio * estimate


def _difference(logps: Tensor, reference: Tensor, clamp: float | None) -> Tensor:
    d = logps - reference
    return d if clamp is None else d.clamp(-clamp, clamp)


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
