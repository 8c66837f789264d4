"""Advantages of answers from the rewards of their groups: GroupRewards -> [P, G].

The rewards are those of all P prompts of an optimizer step; r is an answer's total. An answer that could not be scored (NaN) has the
advantage 0 and is in no mean and no deviation. Deviations are Bessel-corrected. Where a group has a single scored answer there is
nothing to compare it with: its advantage is 0, except from `raw` and `reinforce_plus_plus`.
"""

from __future__ import annotations

from dataclasses import replace
from math import comb
from typing import Literal

import torch
from torch import Tensor

from posttrain.types import GroupRewards


def group(rewards: GroupRewards, *, scale: Literal["group", "batch", "none"] = "group", eps: float = 1e-4) -> Tensor:
    """(r - mean) / (std + eps), mean and std over the group (GRPO, arXiv:2402.03300, section 4.1.2).

    scale: std of the group; of all rewards of the batch (arXiv:2508.08221); none: the difference alone (Dr. GRPO,
        arXiv:2503.20783, section 3.2).
    eps: 1e-4 in TRL, 1e-6 in verl and NeMo-RL, 1e-9 in OpenRLHF. Raises ValueError for an unknown scale.
    """
    total = rewards.total
    centred = total - total.nanmean(1, keepdim=True)
    if scale == "none":
        return centred.nan_to_num()
    if scale not in ("group", "batch"):
        raise ValueError(f"scale must be group, batch or none, got {scale!r}")
    spread = nanstd(total, 1) if scale == "group" else nanstd(total)
    return (centred / (spread + eps)).nan_to_num()


def leave_one_out(rewards: GroupRewards, *, normalise: bool = False, eps: float = 1e-4) -> Tensor:
    """r - mean of the group's other answers (RLOO, arXiv:2402.14740).

    normalise: subtract the batch's mean and divide by its std + eps.
    """
    advantages = _without_itself(rewards.total)
    return (_normalised(advantages, eps) if normalise else advantages).nan_to_num()


def reinforce_plus_plus(rewards: GroupRewards, *, baseline: bool = False, eps: float = 1e-8) -> Tensor:
    """(r - mean) / sqrt(var + eps), mean and variance over the whole batch (REINFORCE++, arXiv:2501.03262).

    baseline: subtract the group's mean first (its variant for groups); an only answer then has the baseline of itself, so 0 before the
        batch is normalised. Every answer counts once; verl weighs answers by their tokens. A batch without variance has advantages 0.
    """
    total = rewards.total - rewards.total.nanmean(1, keepdim=True) if baseline else rewards.total
    return ((total - total.nanmean()) * (nanstd(total).nan_to_num().square() + eps).rsqrt()).nan_to_num()


def decoupled(rewards: GroupRewards, *, eps: float = 1e-4) -> Tensor:
    """Each component normalised in its group, then the weighted sum of them, then that in the batch (GDPO, arXiv:2601.05242).

    z_k = (r_k - mean_group) / (std_group + eps), z = sum_k w_k z_k over the components that scored the answer,
    (z - mean_batch) / (std_batch + eps).
    """
    parts = rewards.parts
    scores = (parts - parts.nanmean(2, keepdim=True)) / (nanstd(parts, 2) + eps)
    combined = (scores.nan_to_num() * rewards.weights.to(parts.dtype)[:, None, None]).sum(0)
    return _normalised(combined.masked_fill(rewards.total.isnan(), float("nan")), eps).nan_to_num()


def pass_at_k(rewards: GroupRewards, *, k: int = 4, threshold: float = 0.5) -> Tensor:
    """Advantages for at least one right answer among k (arXiv:2508.10751, the analytical form).

    An answer is right where its total is above `threshold`. Of the n scored answers of a group w are wrong. The mean over all sets of k
    of them of whether one is right is R = 1 - C(w, k) / C(n, k), its deviation s = sqrt(R (1 - R)). An answer's advantage is the mean of
    the normalised reward of the sets it is in: right: (1 - R) / s, wrong: (1 - R - C(w - 1, k - 1) / C(n - 1, k - 1)) / s. With s = 0,
    so where all are wrong or fewer than k are, and where n < k: 0. k = 1 is `group` with the uncorrected deviation and no eps.
    Raises ValueError unless 1 <= k <= G.
    """
    total = rewards.total
    if not 1 <= k <= total.shape[1]:
        raise ValueError(f"k must lie between 1 and the {total.shape[1]} answers of a group, got {k}")
    right = total > threshold
    rows = [_of_sets(int(n), int(r), k) for n, r in zip((~total.isnan()).sum(1), right.sum(1), strict=True)]
    of_right, of_wrong = total.new_tensor(rows).unsqueeze(2).unbind(1)
    return torch.where(right, of_right, of_wrong).masked_fill(total.isnan(), 0.0)


def raw(rewards: GroupRewards) -> Tensor:
    """The rewards themselves; for one answer a prompt, or where a value function is the baseline."""
    return rewards.total.nan_to_num(nan=0.0)


def informative(rewards: GroupRewards) -> Tensor:
    """Whether a group's scored answers differ in reward, bool [P]; groups that do not teach nothing (DAPO's dynamic sampling,
    arXiv:2503.14476, section 3.2)."""
    total, missing = rewards.total, rewards.total.isnan()
    return total.masked_fill(missing, float("-inf")).amax(1) > total.masked_fill(missing, float("inf")).amin(1)


def only(rewards: GroupRewards, kept: Tensor) -> GroupRewards:
    """The rewards with all answers but those `kept`, bool [P, G], as if they had not been scored."""
    return replace(rewards, total=rewards.total.masked_fill(~kept, float("nan")), parts=rewards.parts.masked_fill(~kept, float("nan")))


def of_groups(rewards: GroupRewards, kept: Tensor) -> GroupRewards:
    """The rewards with all groups but those `kept`, bool [P], as if they had not been scored.

    An answer that the loss leaves out, as one that was cut off, still says how good the others of its group are: overlong filtering masks
    its loss only (DAPO, arXiv:2503.14476, section 3.4).
    """
    return only(rewards, kept[:, None].expand_as(rewards.total))


def nanstd(values: Tensor, dim: int | None = None) -> Tensor:
    """Bessel-corrected deviation of the values that are not NaN, over one dimension, which is kept, or all of them; NaN of a single one."""
    dims = list(range(values.dim())) if dim is None else [dim]
    count = (~values.isnan()).sum(dims, keepdim=True)
    squares = (values - values.nanmean(dims, keepdim=True)).square().nansum(dims, keepdim=True)
    return torch.where(count > 1, squares / (count - 1), float("nan")).sqrt()


def _normalised(values: Tensor, eps: float) -> Tensor:
    return (values - values.nanmean()) / (nanstd(values) + eps)


def _without_itself(total: Tensor) -> Tensor:
    """r - mean of the others, [P, G]; NaN where there are no others."""
    others = (~total.isnan()).sum(1, keepdim=True) - 1
    return total - torch.where(others > 0, (total.nansum(1, keepdim=True) - total) / others, float("nan"))


def _of_sets(scored: int, right: int, k: int) -> tuple[float, float]:
    """The advantages of a right and of a wrong answer."""
    wrong = scored - right
    none_right = comb(wrong, k) / comb(scored, k) if scored >= k else 0.0  # 1 - R
    if none_right in (0.0, 1.0):
        return 0.0, 0.0
    spread = (none_right * (1 - none_right)) ** 0.5
    return none_right / spread, (none_right - comb(wrong - 1, k - 1) / comb(scored - 1, k - 1)) / spread
