"""From per-token log-probabilities to what pair losses read, and what is reported of a pair."""

from __future__ import annotations

from torch import Tensor

from posttrain.functional.reductions import segment_sum
from posttrain.types import PairLogps, TokenTree


def answer_sums(values: Tensor, tree: TokenTree) -> Tensor:
    """Weighted sums of per-target values [N] over the answers of a tree, [M], in the order of its marks."""
    wide = values * tree.weight.to(values.dtype)
    return segment_sum(wide, tree.segment, len(tree.segments)).index_select(0, tree.mark_segment)


def pair_logps(logps: Tensor, reference: Tensor | None, tree: TokenTree) -> PairLogps:
    """Log-probabilities of a tree's pairs: its marks are chosen, rejected, chosen, rejected ...

    logps, reference: [N], of the targets, under the policy and the reference.
    """
    sums = answer_sums(logps, tree).view(-1, 2)
    lengths = answer_sums(logps.new_ones(logps.shape), tree).view(-1, 2)
    known = None if reference is None else answer_sums(reference, tree).view(-1, 2)
    return PairLogps(
        sums[:, 0], sums[:, 1], lengths[:, 0], lengths[:, 1], None if known is None else known[:, 0], None if known is None else known[:, 1]
    )


def implicit_rewards(pairs: PairLogps, *, beta: float) -> tuple[Tensor, Tensor]:
    """beta log(pi / pi_ref) of the chosen and the rejected answers, [P]: DPO's implicit rewards (arXiv:2305.18290, section 4).

    Without a reference beta log(pi) / |y|, SimPO's.
    """
    if pairs.reference_chosen is None or pairs.reference_rejected is None:
        return beta * pairs.chosen / pairs.chosen_length, beta * pairs.rejected / pairs.rejected_length
    return beta * (pairs.chosen - pairs.reference_chosen), beta * (pairs.rejected - pairs.reference_rejected)


def preferred(margin: Tensor) -> Tensor:
    """1 where the margin is positive, 1/2 where it is zero, else 0: accuracy that starts at one half for equal policies."""
    return (margin.sign() + 1) / 2
