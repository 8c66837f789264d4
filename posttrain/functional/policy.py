"""Losses of policy gradients on sampled answers.

Every function returns this micro-batch's part of the optimizer step's loss, a scalar, and parts of metrics. Parts add up over
micro-batches and ranks to the value of the step, however it is split, because all denominators are the step's. Written A for the
advantage of a token and r = pi / pi_old for its ratio.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from posttrain.functional.kl import k3
from posttrain.functional.reductions import segment_sum
from posttrain.types import PolicyTokens

Aggregation = Literal["sequence_mean", "token_mean", "fixed_length", "sequence_sum"]
Level = Literal["token", "sequence", "sequence_token", "sequence_product"]
Result = tuple[Tensor, dict[str, Tensor]]
LARGEST_LOG_RATIO = 40.0  # e^40 is a number that thousands of can be added in float32


def aggregate(values: Tensor, tokens: PolicyTokens, *, aggregation: Aggregation = "token_mean") -> Tensor:
    """This micro-batch's part of the step's value of per-token values [N], a scalar.

    The numerator is the sum of weight * correction * value over tokens whose weight is not 0. It is divided by:
        sequence_mean: tokens of the answer, and answers: the mean over answers of their tokens' means (GRPO, arXiv:2402.03300, eq. 3).
        token_mean: tokens of the step (DAPO, arXiv:2503.14476, eq. 8).
        fixed_length: answers times the longest an answer may be (Dr. GRPO, arXiv:2503.20783, section 3.2).
        sequence_sum: answers: the mean over answers of their tokens' sums.
    Tokens and answers are those that `tokens` states, `lengths`, `step_tokens` and `step_sequences`; weights and corrections do not
    change them. An answer none of whose tokens counts adds nothing to the sum, and is one of the answers if `step_sequences` counts it.
    Raises ValueError for an unknown aggregation, and where the denominator is not positive.
    """
    if aggregation not in _DENOMINATORS:
        raise ValueError(f"there is no aggregation {aggregation!r}; known: {', '.join(_DENOMINATORS)}")
    per_token, of_step = _DENOMINATORS[aggregation](tokens)
    if of_step <= 0:
        raise ValueError(f"the step's denominator must be positive, got {of_step} ({aggregation})")
    weight = tokens.weight if tokens.correction is None else tokens.weight * tokens.correction
    weighted = values.masked_fill(tokens.weight == 0, 0.0) * weight.to(values.dtype)
    return (weighted if per_token is None else weighted / per_token).sum() / of_step


def ratios(tokens: PolicyTokens, *, level: Level = "token", log_ratio_clamp: float | None = None) -> Tensor:
    """The ratio of policy and sampling policy that stands at each token, [N], with a gradient.

    token: pi / pi_old of the token. sequence: of its answer, per token: exp of the mean log-ratio (GSPO, arXiv:2507.18071, eq. 7).
    sequence_token: the same value, with the gradient of the token's own log-probability (GSPO-token, eq. 14).
    sequence_product: of its answer: exp of the summed log-ratio. Tokens of weight 0 are in no mean and no sum; their ratio is 1.
    log_ratio_clamp: largest |log-ratio| of a token or answer; None: as it is, up to LARGEST_LOG_RATIO. Beyond it no gradient.
    Raises ValueError for an unknown level.
    """
    if level not in _LOG_RATIOS:
        raise ValueError(f"there is no level {level!r}; known: {', '.join(_LOG_RATIOS)}")
    log_ratio = (tokens.logps - tokens.old).masked_fill(tokens.weight == 0, 0.0)
    found = _LOG_RATIOS[level](log_ratio, tokens)
    found = found.clamp(max=LARGEST_LOG_RATIO)
    return (found if log_ratio_clamp is None else found.clamp(-log_ratio_clamp, log_ratio_clamp)).exp()


def clipped(
    tokens: PolicyTokens,
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    level: Level = "token",
    aggregation: Aggregation = "sequence_mean",
    log_ratio_clamp: float | None = None,
) -> Result:
    """-min(r A, clip(r, 1 - clip, 1 + clip_high) A): PPO's surrogate (arXiv:1707.06347, eq. 7), and so GRPO's, DAPO's and GSPO's.

    clip_high: None: clip. dual_clip: for A < 0 the ratio counts as at most this, c in dual-clip PPO (arXiv:1912.09729), which is
    also delta of two-sided clipping (INTELLECT-2, arXiv:2505.07291). level, log_ratio_clamp: see `ratios`; at the levels of answers with
    sequence_mean and one advantage an answer, this is the mean over answers of the answer's own objective.
    Raises ValueError unless 0 <= clip <= 1, clip_high >= 0 and dual_clip > 1 + clip_high.
    """
    high = clip if clip_high is None else clip_high
    _check_clip(clip, high, dual_clip)
    ratio, advantages = ratios(tokens, level=level, log_ratio_clamp=log_ratio_clamp), tokens.advantages
    bounded = ratio if dual_clip is None else ratio.clamp(max=dual_clip)
    objective = torch.minimum(bounded * advantages, ratio.clamp(1 - clip, 1 + high) * advantages)
    below, above = (ratio < 1 - clip) & (advantages < 0), (ratio > 1 + high) & (advantages > 0)
    flags = {"clip/low": below, "clip/high": above}
    if dual_clip is not None:
        flags["clip/dual"] = (ratio > dual_clip) & (advantages < 0)
    return aggregate(-objective, tokens, aggregation=aggregation), _reported(tokens, ratio, flags, level)


def cispo(tokens: PolicyTokens, *, lower: float = 0.0, upper: float = 5.0, aggregation: Aggregation = "token_mean") -> Result:
    """-w A log pi, w = clip(r, lower, upper) without a gradient: no token's gradient is lost (CISPO, arXiv:2506.13585, eq. 4).

    lower, upper: bounds of the weight itself, the paper's 1 - eps_low and 1 + eps_high; it leaves the lower one out. (TRL's epsilon_high
    is this bound, verl's clip_ratio_high is the distance to 1.) Raises ValueError unless 0 <= lower <= upper.
    """
    if not 0 <= lower <= upper:
        raise ValueError(f"cispo needs 0 <= lower <= upper, got {lower} and {upper}")
    ratio = ratios(tokens).detach()
    loss = aggregate(-ratio.clamp(lower, upper) * tokens.advantages * tokens.logps, tokens, aggregation=aggregation)
    return loss, _reported(tokens, ratio, {"clip/low": ratio < lower, "clip/high": ratio > upper}, "token")


def sapo(
    tokens: PolicyTokens, *, tau_positive: float = 1.0, tau_negative: float = 1.05, aggregation: Aggregation = "sequence_mean"
) -> Result:
    """-(4 / tau) sigmoid(tau (r - 1)) A: a soft gate in place of the clip (SAPO, arXiv:2511.20347).

    tau_positive where A > 0, else tau_negative. Its slope at r = 1 is 1. Raises ValueError unless both are positive.
    """
    if not (tau_positive > 0 and tau_negative > 0):
        raise ValueError(f"sapo needs positive temperatures, got {tau_positive} and {tau_negative}")
    ratio = ratios(tokens)
    tau = torch.where(tokens.advantages > 0, ratio.new_tensor(tau_positive), ratio.new_tensor(tau_negative))
    gate = torch.sigmoid(tau * (ratio - 1)) * 4 / tau
    return aggregate(-gate * tokens.advantages, tokens, aggregation=aggregation), _reported(tokens, ratio, {}, "token")


def reinforce(tokens: PolicyTokens, *, aggregation: Aggregation = "token_mean") -> Result:
    """-A log pi: REINFORCE (Williams 1992); `old` is only reported.

    token_mean and sequence_sum have gradients of one direction, the policy gradient's; the other two weigh answers by their length.
    """
    loss = aggregate(-tokens.advantages * tokens.logps, tokens, aggregation=aggregation)
    return loss, _reported(tokens, ratios(tokens), {}, "token")


def _reported(tokens: PolicyTokens, ratio: Tensor, flags: dict[str, Tensor], level: Level) -> dict[str, Tensor]:
    """Parts of step means without a gradient, over tokens, or over answers where the ratio is an answer's.

    The flags; ratio/mean; ratio/kl: KL(pi_old || pi) per token (k3), always over tokens.
    """
    counted = replace(tokens, weight=(tokens.weight != 0).to(ratio.dtype), correction=None)
    over: Aggregation = "token_mean" if level == "token" else "sequence_mean"
    drift = k3(tokens.old, tokens.logps.detach(), clamp=20.0)
    found = {name: aggregate(flag.to(ratio.dtype), counted, aggregation=over) for name, flag in flags.items()}
    found["ratio/mean"] = aggregate(ratio.detach(), counted, aggregation=over)
    return found | {"ratio/kl": aggregate(drift, counted, aggregation="token_mean")}


def _check_clip(clip: float, high: float, dual_clip: float | None) -> None:
    if not 0 <= clip <= 1:
        raise ValueError(f"clip must lie in [0, 1], got {clip}")
    if high < 0:
        raise ValueError(f"clip_high must be at least 0, got {high}")
    if dual_clip is not None and dual_clip <= 1 + high:
        raise ValueError(f"dual_clip bounds ratios that are not clipped yet: it must be above {1 + high}, got {dual_clip}")


def _answer_means(log_ratio: Tensor, tokens: PolicyTokens) -> Tensor:
    """Mean log-ratio of each token's answer, [N]."""
    sums = segment_sum(log_ratio, tokens.sequence, len(tokens.lengths))
    return (sums / tokens.lengths.clamp(min=1)).index_select(0, tokens.sequence)


def _own_gradient(log_ratio: Tensor, tokens: PolicyTokens) -> Tensor:
    """`_answer_means` by value, with the gradient of the token's own log-ratio."""
    return _answer_means(log_ratio.detach(), tokens) + log_ratio - log_ratio.detach()


def _answer_sums(log_ratio: Tensor, tokens: PolicyTokens) -> Tensor:
    """Summed log-ratio of each token's answer, [N]."""
    return segment_sum(log_ratio, tokens.sequence, len(tokens.lengths)).index_select(0, tokens.sequence)


_LOG_RATIOS: dict[str, Callable[[Tensor, PolicyTokens], Tensor]] = {
    "token": lambda log_ratio, _: log_ratio,
    "sequence": _answer_means,
    "sequence_token": _own_gradient,
    "sequence_product": _answer_sums,
}
_DENOMINATORS: dict[str, Callable[[PolicyTokens], tuple[Tensor | None, float]]] = {  # of each token [N], and of the step
    "sequence_mean": lambda tokens: (tokens.lengths.clamp(min=1).index_select(0, tokens.sequence), tokens.step_sequences),
    "token_mean": lambda tokens: (None, tokens.step_tokens),
    "fixed_length": lambda tokens: (None, tokens.step_sequences * tokens.longest),
    "sequence_sum": lambda tokens: (None, tokens.step_sequences),
}
