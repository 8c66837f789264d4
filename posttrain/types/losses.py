"""What losses read. N loss positions, P pairs, M or A answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TokenStats:
    """Per-target statistics of the next-token distribution; float32 [N]; None where not asked for.

    logps: log p(target). lse: log-sum-exp of the (soft-capped, tempered) logits. entropy: of the distribution, nats.
    mean_logps: mean over the vocabulary of log p, for label smoothing. correct: whether the target is the argmax (bool).
    log_collision: log sum over the vocabulary of p^2, without a gradient.
    """

    logps: Tensor
    lse: Tensor | None = None
    entropy: Tensor | None = None
    mean_logps: Tensor | None = None
    correct: Tensor | None = None
    log_collision: Tensor | None = None


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of the answers of P pairs, summed over each answer's tokens: nats, [P].

    chosen, rejected: under the policy. chosen_length, rejected_length: tokens. reference_chosen, reference_rejected: under the reference
    policy, None where there is none. baseline: scalar that some losses subtract from the log-ratios, nats, None for none.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None
    baseline: Tensor | None = None


@dataclass(frozen=True)
class AnswerLogps:
    """Log-probabilities of M judged answers, summed over each answer's tokens: nats, [M].

    logps: under the policy. reference: under the reference policy. length: tokens. desirable: bool, what was said of the answer.
    baseline: scalar that some losses subtract from the log-ratios, nats, None for none.
    """

    logps: Tensor
    reference: Tensor
    length: Tensor
    desirable: Tensor
    baseline: Tensor | None = None


@dataclass(frozen=True)
class Judged:
    """What a reward head says of A answers, float32.

    reward: [A]. attributes: [A, K], qualities in (0, 1); None for heads without. quantiles: [A, Q], ascending; levels: [Q], the
    probabilities they belong to; None for heads without.
    """

    reward: Tensor
    attributes: Tensor | None = None
    quantiles: Tensor | None = None
    levels: Tensor | None = None


@dataclass(frozen=True)
class Rated:
    """What is known of the A answers of a tree, in the order of its marks; NaN where nothing is.

    place: int64 [A], of the last token. length: float32 [A], tokens of the answer. score: float32 [A]. attributes: float32 [A, K].
    """

    place: Tensor
    length: Tensor
    score: Tensor
    attributes: Tensor


@dataclass(frozen=True)
class PolicyTokens:
    """What a policy-gradient loss reads of the N sampled tokens of a micro-batch, S answers in all; answers are never cut apart.

    logps: [N], under the policy, with a gradient. old: [N], under the policy that sampled them (the ratio's denominator). advantages: [N].
    weight: [N], 0 for tokens that do not count, else 1 or a correction. sequence: int64 [N], which of the S answers a token belongs to.
    lengths: [S], tokens of each answer that count. step_tokens, step_sequences: such tokens, and answers, of the whole optimizer step,
    over all micro-batches and ranks; no correction changes them. longest: most tokens an answer may have. correction: [N], a further
    factor of each token's loss; where it is 0 the token still counts in lengths and in ratios of whole answers. None for none.
    """

    logps: Tensor
    old: Tensor
    advantages: Tensor
    weight: Tensor
    sequence: Tensor
    lengths: Tensor
    step_tokens: float
    step_sequences: int
    longest: int
    correction: Tensor | None = None
