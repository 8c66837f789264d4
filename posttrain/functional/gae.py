"""What PPO computes from rewards and values of sampled tokens.

N tokens of S answers lie one answer after the other; `lengths`, int64 [S], says how many each has. Tokens that the policy did not sample
(what a tool returned) are not among them, so that values carry over to the next sampled token.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from posttrain.functional.kl import Estimator, penalty
from posttrain.functional.reductions import step_mean


def gae(rewards: Tensor, values: Tensor, lengths: Tensor, *, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Advantages and returns, [N] each, without a gradient (generalised advantage estimation, arXiv:1506.02438, eq. 16).

    A_t = sum_l (gamma lam)^l delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t; the value after an answer's last token is 0. Returns are
    A + V. Raises ValueError where the lengths do not sum to N, and unless gamma and lam lie in [0, 1].
    """
    _check_discounts(gamma, lam)
    there = _places(lengths, len(rewards))
    r, v = (_padded(x.detach(), there) for x in (rewards, values))
    delta = r + gamma * pad(v[:, 1:], (0, 1)) - v
    found, carry = torch.zeros_like(delta), delta.new_zeros(len(lengths))
    for t in reversed(range(delta.shape[1])):
        carry = delta[:, t] + gamma * lam * carry
        found[:, t] = carry
    return found[there], found[there] + values.detach()


def token_rewards(
    scores: Tensor,
    logps: Tensor,
    reference: Tensor,
    lengths: Tensor,
    *,
    coef: float = 0.05,
    estimator: Estimator = "k1",
    clamp: float | None = None,
) -> Tensor:
    """-coef times the divergence from the reference at every token, and the answer's score at its last one, [N] (arXiv:1909.08593, eq. 2).

    scores: [S]. logps, reference: [N], under the policy that sampled and the reference. The score of an answer without tokens is lost.
    """
    rewards = -coef * penalty(logps, reference, estimator=estimator, clamp=clamp).detach()
    some = lengths > 0
    return rewards.index_add(0, (lengths.cumsum(0) - 1)[some], scores.detach()[some].to(rewards.dtype))


def missing_end(scores: Tensor, ended: Tensor, *, penalty: float = 1.0) -> Tensor:
    """Scores [S], lowered by `penalty` where an answer was cut off. ended: bool [S]."""
    return scores - penalty * (~ended).to(scores.dtype)


def moments(values: Tensor, weight: Tensor) -> Tensor:
    """How many values have a weight that is not 0, their sum, and the sum of their squares: float64 [3], to be added up over ranks."""
    counted = (weight != 0).double()
    wide = values.detach().double().masked_fill(weight == 0, 0.0)
    return torch.stack([counted.sum(), wide.sum(), wide.square().sum()])


def whiten(values: Tensor, weight: Tensor, sums: Tensor, *, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(var + eps), [N]; 0 where the weight is 0.

    sums: `moments` over all ranks; the variance is Bessel-corrected, and 0 of a single value. shift_mean: False keeps the mean where it
    was, for rewards.
    """
    count, mean, variance = mean_and_variance(sums)
    if count == 0:
        return torch.zeros_like(values)
    whitened = (values - mean) * (variance + eps) ** -0.5 + (0.0 if shift_mean else mean)
    return whitened.masked_fill(weight == 0, 0.0)


def mean_and_variance(sums: Tensor) -> tuple[float, float, float]:
    """Count, mean and Bessel-corrected variance from `moments`; 0 where there are too few values."""
    count, total, squares = sums.tolist()
    mean = total / max(count, 1.0)
    return count, mean, max(squares - count * mean * mean, 0.0) / max(count - 1, 1.0)


def value_loss(
    values: Tensor, old: Tensor, returns: Tensor, weight: Tensor, denominator: float, *, clip: float | None = 0.2
) -> tuple[Tensor, dict[str, Tensor]]:
    """This micro-batch's part of the step's mean of max((V - R)^2, (clip(V, old - clip, old + clip) - R)^2) / 2, and parts of metrics.

    values, old, returns, weight: [N]; old: the values the returns were made of. denominator: sum of the weights of the step. clip: None:
    (V - R)^2 / 2. The clipping is that of the code of arXiv:1707.06347's authors. Metrics: value/clip, the share of tokens it holds back;
    value/error, (V - R)^2.
    """
    squares = (values - returns).square()
    bounded = values if clip is None else old + (values - old).clamp(-clip, clip)
    held = (bounded - returns).square()
    metrics = {"value/clip": (held > squares).to(values.dtype), "value/error": squares.detach()}
    loss = step_mean(torch.maximum(squares, held) / 2, weight, denominator)
    return loss, {name: step_mean(value, weight, denominator) for name, value in metrics.items()}


def adapted(coef: float, kl: float, *, target: float = 6.0, rate: float = 0.1, limit: float = 0.2) -> float:
    """The next coefficient of the divergence: coef (1 + rate clip(kl / target - 1, -limit, limit)) (arXiv:1909.08593, section 2.2).

    kl: of this step, per answer, nats. rate: implementations write it as answers of the step over a horizon.
    Raises ValueError unless target is positive.
    """
    if target <= 0:
        raise ValueError(f"the divergence's target must be positive, got {target}")
    return coef * (1 + rate * min(max(kl / target - 1, -limit), limit))


def _places(lengths: Tensor, tokens: int) -> Tensor:
    """Which places of [S, longest] hold a token, bool."""
    if int(lengths.sum()) != tokens:
        raise ValueError(f"the answers' lengths sum to {int(lengths.sum())}, but there are {tokens} tokens")
    longest = int(lengths.max()) if len(lengths) else 0
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def _padded(values: Tensor, there: Tensor) -> Tensor:
    """Values [N] as [S, longest], 0 behind each answer's end."""
    return values.new_zeros(there.shape).masked_scatter(there, values)


def _check_discounts(gamma: float, lam: float) -> None:
    for name, value in (("gamma", gamma), ("lam", lam)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")
