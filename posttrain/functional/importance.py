"""Correction for a sampler that is not the trainer: the same weights give other log-probabilities in another engine or precision."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from posttrain.functional.kl import k3
from posttrain.functional.reductions import segment_sum


def correction(
    trainer: Tensor,
    sampler: Tensor,
    sequence: Tensor,
    answers: int,
    *,
    level: Literal["token", "sequence"] = "token",
    mode: Literal["truncate", "mask"] = "truncate",
    most: float | None = 2.0,
    least: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weights rho [N] of sampled tokens, without a gradient, and sums of how far the two are apart before anything is bounded.

    trainer, sampler: [N], log-probabilities of the sampled tokens by the trainer, with the weights that sampled, and by the sampler.
    sequence: int64 [N], which of the `answers` answers a token belongs to.
    level: rho = exp(trainer - sampler) of the token, or exp of its sum over the token's answer.
    mode: truncate: rho bounded by `least` and `most` (truncated importance sampling, Ionides 2008; its use here: Yao et al. 2025, Your
        efficient RL framework secretly brings you off-policy RL training). mask: rho, and 0 where it lies outside (IcePop).
    Returns mismatch/abs, mismatch/kl, mismatch/outside: sums over tokens of |d|, of e^d - 1 - d (k3 of KL(sampler || trainer)), and of
    whether rho lies outside, d = trainer - sampler; mismatch/max: largest |d|; mismatch/tokens: N. See `mismatch`.
    Raises ValueError for an unknown level or mode, bounds that are not 0 <= least <= most, and where d is not finite.
    """
    low, high = _bounds(least, most)
    d = (trainer - sampler).detach()
    if not bool(torch.isfinite(d).all()):
        raise ValueError("log-probabilities of sampled tokens must be finite")
    rho = _log_weights(d, sequence, answers, level).exp()
    outside = (rho < low) | (rho > high)
    return _bounded(rho, outside, low, high, mode), _sums(d, outside)


def mismatch(sums: dict[str, Tensor]) -> dict[str, float]:
    """What is reported, from `correction`'s sums (added up over ranks, mismatch/max by its maximum): means over tokens, and the maximum."""
    tokens = max(float(sums["mismatch/tokens"]), 1.0)
    means = {name: float(sums[name]) / tokens for name in ("mismatch/abs", "mismatch/kl", "mismatch/outside")}
    return means | {"mismatch/max": float(sums["mismatch/max"])}


def _bounds(least: float | None, most: float | None) -> tuple[float, float]:
    low, high = 0.0 if least is None else least, float("inf") if most is None else most
    if not 0 <= low <= high:
        raise ValueError(f"the weights' bounds need 0 <= least <= most, got {least} and {most}")
    return low, high


def _log_weights(d: Tensor, sequence: Tensor, answers: int, level: str) -> Tensor:
    """log rho, [N]."""
    if level not in ("token", "sequence"):
        raise ValueError(f"level must be token or sequence, got {level!r}")
    return d if level == "token" else segment_sum(d, sequence, answers).index_select(0, sequence)


def _bounded(rho: Tensor, outside: Tensor, low: float, high: float, mode: str) -> Tensor:
    if mode not in ("truncate", "mask"):
        raise ValueError(f"mode must be truncate or mask, got {mode!r}")
    return rho.clamp(low, high) if mode == "truncate" else rho.masked_fill(outside, 0.0)


def _sums(d: Tensor, outside: Tensor) -> dict[str, Tensor]:
    return {
        "mismatch/abs": d.abs().sum(),
        "mismatch/kl": k3(-d, torch.zeros_like(d)).sum(),
        "mismatch/outside": outside.to(d.dtype).sum(),
        "mismatch/max": torch.cat([d.abs(), d.new_zeros(1)]).max(),
        "mismatch/tokens": d.new_tensor(float(d.numel())),
    }
