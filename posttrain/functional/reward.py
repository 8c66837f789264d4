"""Losses of reward models: on pairs of answers, on ratings, on qualities of an answer, on the steps of a worked answer.

r is a reward; a rating that is not known is NaN and adds nothing. The mean over an optimizer step is the method's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, huber_loss, logsigmoid, softplus

from posttrain.functional.pairs import preferred
from posttrain.types import Judged, Rated, TokenTree


def bradley_terry(chosen: Tensor, rejected: Tensor, gap: Tensor, *, margin_scale: float = 0.0, centre: float = 0.0) -> Tensor:
    """-log sigmoid(r_w - r_l - m) + centre (r_w + r_l)^2, one loss a pair, [P].

    chosen, rejected: rewards r_w and r_l, [P]. gap: the chosen answer's rating above the rejected one's, [P].
    margin_scale: m is this times the gap, 0 where a rating is unknown (Llama 2, arXiv:2307.09288, eq. 2).
    centre: keeps rewards around zero, which their differences leave open (arXiv:2312.09244, section 4).
    """
    margin = margin_scale * gap.nan_to_num(0.0)
    return -logsigmoid(chosen - rejected - margin) + centre * (chosen + rejected).square()


def squared(judged: Judged, score: Tensor) -> Tensor:
    """(r - score)^2 for each answer, [A]."""
    return known(score, lambda target: (judged.reward - target).square())


def huber(judged: Judged, score: Tensor, *, delta: float = 1.0) -> Tensor:
    """Huber's loss of r - score for each answer, [A]: squared / 2 up to `delta`, linear beyond, so that a few wild ratings weigh less."""
    return known(score, lambda target: huber_loss(judged.reward, target, reduction="none", delta=delta))


def pinball(judged: Judged, score: Tensor) -> Tensor:
    """Mean over the head's levels of the pinball loss for each answer, [A]. Raises ValueError for a head without quantiles."""
    if judged.quantiles is None or judged.levels is None:
        raise ValueError("pinball needs a head with quantiles: method.head=quantile")
    quantiles, levels = judged.quantiles, judged.levels
    return known(score, lambda target: pinball_loss(quantiles, target, levels).mean(-1))


def pinball_loss(quantiles: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    """max(t (y - q), (t - 1) (y - q)), [A, Q]: its expectation is least where q is the t-quantile of y (Koenker & Bassett, 1978).

    quantiles: q, [A, Q]. target: y, [A]. levels: t, [Q].
    """
    over = target[:, None] - quantiles
    return torch.maximum(levels * over, (levels - 1) * over)


def ascending(first: Tensor, steps: Tensor) -> Tensor:
    """Quantiles that cannot cross, [A, 1 + S]: the first one, [A, 1], and above it the running sum of softplus(steps), [A, S]."""
    return torch.cat([first, first + softplus(steps).cumsum(-1)], -1)


def attribute_loss(attributes: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of predicted qualities with their ratings, both in [0, 1], [A, K] each: the mean over an answer's known
    ratings, [A]; 0 for an answer without any."""
    rated = ~targets.isnan()
    losses = known(targets, lambda target: binary_cross_entropy(attributes, target, reduction="none"))
    return losses.sum(-1) / rated.sum(-1).clamp(min=1)


def step_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of step labels, one loss a step, [M]; 0 where the label is unknown (arXiv:2305.20050, section 2.6).

    logits: of wrong and right, [M, 2]. labels: 1 right, 0 wrong, [M].
    """
    margin = logits[:, 1] - logits[:, 0]
    return known(labels, lambda label: softplus(-margin) * label + softplus(margin) * (1 - label))


def known(target: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    """`loss_of` the targets, and 0 with no gradient where a target is NaN."""
    unknown = target.isnan()
    return loss_of(target.nan_to_num(0.0)).masked_fill(unknown, 0.0)


def pair_sums(reward: Tensor) -> dict[str, Tensor]:
    """Sums over pairs of what is reported of them. reward: [2 P], chosen, rejected, chosen, rejected ..."""
    chosen, rejected = reward.view(-1, 2).unbind(1)
    return {
        "rewards/chosen": chosen.sum(),
        "rewards/rejected": rejected.sum(),
        "margin": (chosen - rejected).sum(),
        "accuracy": preferred(chosen - rejected).sum(),
    }


def rated(tree: TokenTree, *, attributes: int) -> Rated:
    """What a tree of the kinds `rated` and `rated_pairs` knows of its answers.

    attributes: K. Each answer's last token is marked 2 + K times: for its length, its score, its K attributes.
    """
    facts = tree.value.view(-1, 2 + attributes)
    return Rated(tree.mark.view(-1, 2 + attributes)[:, 0], facts[:, 0], facts[:, 1], facts[:, 2:])
