"""From per-token log-probabilities to what pair losses read, and what is reported of a pair."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from posttrain.functional.reductions import segment_sum
from posttrain.types import PairLogps, TokenTree


def answer_sums(values: Tensor, tree: TokenTree) -> Tensor:
    """Weighted sums of per-target values [N] over the answers of a tree, [M], in the order of its marks."""
    wide = values * tree.weight.to(values.dtype)
    return segment_sum(wide, tree.segment, len(tree.segments)).index_select(0, tree.mark_segment)


def pair_logps(logps: Tensor, reference: Tensor | None, tree: TokenTree, *, tail: float = 1.0, baseline: Tensor | None = None) -> PairLogps:
    """Log-probabilities of a tree's pairs: its marks are chosen, rejected, chosen, rejected ...

    logps, reference: [N], of the targets, under the policy and the reference. tail: weight of the tokens by which an answer is longer
    than the other one (LD-DPO's alpha, arXiv:2409.06411, eq. 9; 1 leaves them as they are). Lengths count every token.
    """
    lengths = answer_sums(logps.new_ones(logps.shape), tree).view(-1, 2)
    kept = None if tail == 1.0 else torch.ones_like(logps).masked_fill(beyond_the_shorter(tree), tail)
    sums = answer_sums(logps if kept is None else logps * kept, tree).view(-1, 2)
    known = None if reference is None else answer_sums(reference if kept is None else reference * kept, tree).view(-1, 2)
    chosen, rejected = (None, None) if known is None else (known[:, 0], known[:, 1])
    return PairLogps(sums[:, 0], sums[:, 1], lengths[:, 0], lengths[:, 1], chosen, rejected, baseline)


def one_by_one(pairs: PairLogps) -> list[PairLogps]:
    """Every pair by itself."""
    arrays = {name: value for name, value in vars(pairs).items() if value is not None and name != "baseline"}
    return [replace(pairs, **{name: value[i : i + 1] for name, value in arrays.items()}) for i in range(len(pairs.chosen))]


def beyond_the_shorter(tree: TokenTree) -> Tensor:
    """Whether each target [N] lies behind the length of its pair's shorter answer."""
    counts = torch.bincount(tree.segment, minlength=len(tree.segments))
    first = counts.cumsum(0) - counts
    shortest = torch.full_like(counts, torch.iinfo(counts.dtype).max)
    pairs = tree.mark_segment.view(-1, 2)
    shortest[pairs] = counts[pairs].amin(1, keepdim=True).expand(-1, 2)
    place = torch.arange(len(tree.segment), device=tree.segment.device) - first[tree.segment]
    return place >= shortest[tree.segment]


def likely_weights(logps: Tensor, log_collision: Tensor, tree: TokenTree) -> Tensor:
    """WPO's weights of a tree's pairs, [pairs], no gradient: how likely the policy is to write these answers itself.

    exp of the sum over both answers of mean_t (log p_t - log sum_v p_v^2), at most 1 (arXiv:2406.11827, section 3.2: the
    alignment of a token's probability with what sampling from the policy would give). logps, log_collision: [N].
    """
    aligned = answer_sums((logps - log_collision).detach(), tree)
    lengths = answer_sums(torch.ones_like(logps), tree)
    return (aligned / lengths).view(-1, 2).sum(1).exp().clamp(max=1.0)


def divergence_per_token(logps: Tensor, reference: Tensor, tree: TokenTree) -> Tensor:
    """Mean over each answer's tokens of e^d - 1 - d, d = log pi - log pi_ref, [M], no gradient.

    An estimate of KL(pi_ref || pi) per token (k3, J. Schulman 2020) where the answers are the reference's own; otherwise a drift.
    """
    d = (logps - reference).detach()
    return answer_sums(d.clamp(max=20.0).expm1() - d, tree) / answer_sums(torch.ones_like(d), tree)


def implicit_rewards(pairs: PairLogps, *, beta: float) -> tuple[Tensor, Tensor]:
    """beta log(pi / pi_ref) of the chosen and the rejected answers, [P]: DPO's implicit rewards (arXiv:2305.18290, section 4).

    Without a reference beta log(pi) / |y|, SimPO's.
    """
    if pairs.reference_chosen is None or pairs.reference_rejected is None:
        return beta * pairs.chosen / pairs.chosen_length, beta * pairs.rejected / pairs.rejected_length
    return beta * (pairs.chosen - pairs.reference_chosen), beta * (pairs.rejected - pairs.reference_rejected)


def mean_ratio(pairs: PairLogps) -> Tensor:
    """Mean of both answers' log(pi / pi_ref), [P], no gradient. Raises ValueError without a reference."""
    if pairs.reference_chosen is None or pairs.reference_rejected is None:
        raise ValueError("log-ratios need a reference policy")
    return ((pairs.chosen - pairs.reference_chosen) + (pairs.rejected - pairs.reference_rejected)).detach() / 2


def preferred(margin: Tensor) -> Tensor:
    """1 where the margin is positive, 1/2 where it is zero, else 0: accuracy that starts at one half for equal policies."""
    return (margin.sign() + 1) / 2


def told_apart(pairs: PairLogps, *, beta: float) -> Tensor:
    """`preferred` of each pair's implicit rewards [P], without a gradient."""
    chosen, rejected = implicit_rewards(pairs, beta=beta)
    return preferred((chosen - rejected).detach())


def reported(pairs: PairLogps, *, beta: float) -> dict[str, Tensor]:
    """Sums over pairs of what is logged beside the loss, scalars without a gradient: implicit rewards, accuracy, log-probabilities."""
    chosen, rejected = (reward.detach() for reward in implicit_rewards(pairs, beta=beta))
    return {
        "rewards/chosen": chosen.sum(),
        "rewards/rejected": rejected.sum(),
        "rewards/margin": (chosen - rejected).sum(),
        "rewards/accuracy": preferred(chosen - rejected).sum(),
        "logps/chosen": pairs.chosen.detach().sum(),
        "logps/rejected": pairs.rejected.detach().sum(),
    }


def drift(logps: Tensor, reference: Tensor, tree: TokenTree) -> dict[str, Tensor]:
    """Sums over a tree's pairs of how far the policy has left its reference, per token, scalars without a gradient.

    drift/kl: see `divergence_per_token`, over both answers; drift/chosen: log pi - log pi_ref of the chosen answer, nats.
    """
    lengths = answer_sums(torch.ones_like(logps), tree)
    moved = answer_sums((logps - reference).detach(), tree) / lengths
    return {
        "drift/kl": divergence_per_token(logps, reference, tree).view(-1, 2).mean(1).sum(),
        "drift/chosen": moved.view(-1, 2)[:, 0].sum(),
    }
