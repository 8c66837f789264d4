"""Frozen types that travel between the floors; no behaviour. Shapes: T tokens, S segments, N loss positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """One of the answers to an example's prompt.

    messages: as in `Example`; what follows the prompt, an assistant turn at the end. score: a rating, larger is better, None if unknown.
    attributes: ratings of single qualities by name (readability ...), in [0, 1], larger is better.
    """

    messages: tuple[Mapping[str, Any], ...]
    score: float | None = None
    attributes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A step of a worked answer. end: where it ends in the content of the answer's message, in characters.

    label: 1 right, 0 wrong, None unknown.
    """

    end: int
    label: float | None


@dataclass(frozen=True)
class Example:
    """One training example in the internal form every data format is converted to.

    messages: conversation as OpenAI message dicts (role, content, optional tool_calls, reasoning_content, weight); empty for plain text.
        With `answers` it is their prompt.
    answers: what is compared or judged; of a preference pair the chosen one first.
    steps: of the last message, a worked answer, for process rewards; in order.
    text: the document, for plain-text formats; None for conversations.
    tools: function schemas given to the chat template.
    answer: the checkable final answer, if the format has one.
    meta: what a verifier or a filter may need (tests, entry point, language, subject ...).
    """

    messages: tuple[Mapping[str, Any], ...] = ()
    answers: tuple[Answer, ...] = ()
    steps: tuple[Step, ...] = ()
    text: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    answer: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rendering:
    """What decides how a conversation becomes text, beside the tokenizer's chat template.

    system: message for conversations without one. template_kwargs: given to the template. separator: between the steps of a worked answer.
    """

    system: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    separator: str = "\n"


@dataclass(frozen=True)
class TokenizedExample:
    """One example as tokens, cut into segments; a segment continues its parent.

    ids: int32 [T], segments one after the other, a parent before its children.
    weights: float32 [T], loss weight of the token at that place as a target; 0 = context only.
    segment_lengths: int32 [S], sums to T.
    segment_parents: int32 [S], index of the parent segment, -1 for a root.
    marks: int32 [M], places that something is known about: the last token of each of the tree's sequences, in their order, unless the
        kind of data says otherwise.
    values: float32 [M], what is known there: a rating, a label; NaN where nothing is.
    reference: float32 [T], log-probability of each trained token under the reference policy, where that was computed before.
    columns: float32 [T] by name, what else is known of each trained token (advantages, ...); the same names in all examples of a run.
    """

    ids: np.ndarray
    weights: np.ndarray
    segment_lengths: np.ndarray
    segment_parents: np.ndarray
    marks: np.ndarray
    values: np.ndarray
    reference: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class StepShare:
    """What a micro-batch must know of the optimizer step it belongs to, so that losses do not depend on the split.

    weight: sum of loss weights over the whole step, all ranks and micro-batches.
    examples: number of examples in the whole step.
    parts: micro-batches of the step over all ranks; a micro-batch's loss is `sum / weight * parts`
        because the loop averages over micro-batches and ranks.
    sequences: answers in the whole step, where an example holds several that were sampled; in pairs each as often as it is compared.
    filled: of the parts, how many hold something; the others are empty on every rank. None: all of them.
    """

    weight: float
    examples: int
    parts: int
    sequences: int = 0
    filled: int | None = None


@dataclass(frozen=True)
class TokenTree:
    """One micro-batch: one row of T tokens cut into S segments; a segment sees itself, causally, and its ancestors.

    ids: int64 [T]. positions: int64 [T], continuing from the parent.
    segments: int64 [S, 3] on the host: start, end, parent (-1 for a root); parents come before children.
    source: int64 [N], the place in 0..T-1 whose hidden state predicts the target. target: int64 [N], token id.
    segment: int64 [N], the segment of the target. weight: float32 [N].
    example: int64 [S] on the host, index of the example within the micro-batch.
    mark: int64 [M], places in 0..T-1 that `value`, float32 [M], is known of, see TokenizedExample. mark_segment: int64 [M], their segments.
    share: the step's global denominators. reference: float32 [N], the targets' log-probabilities under the reference policy where they
        were computed before; None elsewhere. columns: float32 [N] by name, see TokenizedExample.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    source: Tensor
    target: Tensor
    segment: Tensor
    weight: Tensor
    example: Tensor
    mark: Tensor
    mark_segment: Tensor
    value: Tensor
    share: StepShare
    reference: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)


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
class Completion:
    """One sampled answer.

    tokens: int32 [L], as sampled, what ended it included (a stop token, the tokens of a stop string). logps: float32 [L], log-probability
    of each token under the model at the sampling temperature, before any truncation (top-k, top-p, min-p) or penalty: what the trainer
    computes. Greedy answers (temperature 0) have those of temperature 1. finish: stop, or length where max_new_tokens cut it off.
    """

    tokens: np.ndarray
    logps: np.ndarray
    finish: Literal["stop", "length"]


@dataclass(frozen=True)
class Sample:
    """A sampled answer as a reward sees it.

    prompt: messages. completion: its text, without what ended it. length: tokens, with what ended it. finish: see Completion.
    answer: the expected one, None if there is none. meta: what a verifier may need (tests, entry point, language ...). group: the same
    number for all answers to one prompt of a batch.
    """

    prompt: tuple[Mapping[str, Any], ...]
    completion: str
    length: int
    finish: Literal["stop", "length"]
    answer: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    group: int = 0


@dataclass(frozen=True)
class GroupRewards:
    """Rewards of G answers to each of P prompts, float64; NaN where an answer could not be scored.

    total: [P, G]. parts: [K, P, G], the components before their weights. weights: [K].
    """

    total: Tensor
    parts: Tensor
    weights: Tensor


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


@dataclass(frozen=True)
class Group:
    """A prompt and the answers sampled to it. example: its number in the data. prompt: int32 [P]."""

    example: int
    prompt: np.ndarray
    completions: tuple[Completion, ...]


@dataclass(frozen=True)
class Rollout:
    """What a policy sampled at one moment, the same on every rank. number: of the rollout in the run. groups: P of them, all of G answers.

    rewards: of their answers. kept: bool [P, G], the answers that are learnt from.
    """

    number: int
    groups: tuple[Group, ...]
    rewards: GroupRewards
    kept: np.ndarray


@dataclass(frozen=True)
class Work:
    """What was computed on, over all ranks: numbers of tokens, of targets and of (query, key) pairs of attention.

    examples: conversations, pairs or prompts. tokens, targets, pairs: forward and backward. forward_tokens, forward_targets, forward_pairs:
    forward only (a reference, sampling). generated: tokens sampled.
    """

    examples: int = 0
    tokens: int = 0
    targets: float = 0.0
    pairs: float = 0.0
    forward_tokens: float = 0.0
    forward_targets: float = 0.0
    forward_pairs: float = 0.0
    generated: int = 0


@dataclass(frozen=True)
class Arrangement:
    """Which answers of a rollout the loss reads together.

    units: of each group, answers by number, such as (chosen, rejected); an answer may be in several units. None: each kept answer is read
    by itself. notes: what is reported of the rollout.
    """

    units: tuple[tuple[tuple[int, ...], ...], ...] | None = None
    notes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """Some of the answers of a rollout's group, as one tree. group: which group. answers: which of its answers, in the tree's order.

    The tree's marks are the ends of the answers that the loss reads, unit after unit; an answer in several units has several.
    """

    group: int
    answers: tuple[int, ...]
    tree: TokenizedExample
