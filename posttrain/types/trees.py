"""Token trees: examples as segments of tokens, and the micro-batch. T tokens, S segments, N loss positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


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
class Stretch:
    """Which part of a micro-batch's row a rank computes: number `rank` of `size` equal ones.

    pieces: 1, or 2 where a part is a piece of the row and another, as far from the row's end as the first from its beginning: causal
    attention then costs every rank about the same. block: tokens that the length of a piece is a multiple of.
    """

    rank: int = 0
    size: int = 1
    pieces: Literal[1, 2] = 1
    block: int = 1


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
    stretch: where the row is cut over several ranks, what is here: T and N count only this part's, all places are counted within it,
        and segments (and example) are those of the whole row.
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
    stretch: Stretch = Stretch()
