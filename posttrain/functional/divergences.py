"""Transforms of a log-ratio x = log pi(y) - log pi_ref(y) by which DPO penalises another f-divergence than the reverse KL.

f-DPO (arXiv:2309.16240, table 1) replaces beta x by beta f'(pi / pi_ref), up to constants, which cancel in a pair's difference.
Every function maps a tensor of log-ratios, of any shape, to one of the same shape; those with an exponential compute in float32 at
least and bound the exponent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

LARGEST_EXPONENT = 80.0  # e^x stays finite in float32


def reverse_kl(x: Tensor) -> Tensor:
    """x: plain DPO."""
    return x


def forward_kl(x: Tensor) -> Tensor:
    """1 - e^-x."""
    return 1 - bounded(-x).exp()


def jensen_shannon(x: Tensor) -> Tensor:
    """log 2 + log sigmoid(x): bounded above, so that a chosen answer cannot win by its own likelihood alone."""
    return math.log(2) + logsigmoid(x)


def alpha(x: Tensor, *, alpha: float = 0.5) -> Tensor:
    """(e^((alpha - 1) x) - 1) / (alpha - 1), between the forward KL (alpha -> 0) and the reverse KL (alpha -> 1).

    Raises ValueError for alpha = 1, which is `reverse_kl`.
    """
    if alpha == 1:
        raise ValueError("alpha=1 is the reverse KL divergence: choose reverse_kl")
    return bounded((alpha - 1) * x).expm1() / (alpha - 1)


def bounded(exponent: Tensor) -> Tensor:
    """The exponent in float32 or wider, no larger than what stays finite."""
    return exponent.to(torch.promote_types(exponent.dtype, torch.float32)).clamp(max=LARGEST_EXPONENT)
