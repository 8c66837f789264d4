"""Statistics of rows of logits from one block of the vocabulary after the other, and the slopes with respect to a block.

As is fit for a CPU: in place, in memory that a block is small enough to keep in its cache. `fused` has the same for other devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from posttrain.functional.head import HeadSpec, times_slope, within


@dataclass(frozen=True)
class Asked:
    """What is wanted beside log-probabilities: entropies, the mean log-probability over the vocabulary, collision probabilities."""

    entropy: bool = False
    mean: bool = False
    collision: bool = False


class Sums(NamedTuple):
    """What is known of N rows after some blocks of their logits l, each [N].

    top: max l. mass: sum e^(l - top). lean: sum e^(l - top) (l - top). total: sum l. squares: sum e^(2 (l - top)). picked: the target's l,
    0 before its block. What is not asked for stays 0.
    """

    top: Tensor
    mass: Tensor
    lean: Tensor
    total: Tensor
    squares: Tensor
    picked: Tensor


class Slopes(NamedTuple):
    """With respect to final logits l = log p + lse of N rows.

    p (by_mass - by_entropy (log p + entropy)) + by_all + by_target 1[v = target]; each [N], None for none.
    """

    by_mass: Tensor
    by_target: Tensor | None = None
    by_entropy: Tensor | None = None
    entropy: Tensor | None = None
    by_all: Tensor | None = None


def in_place(logits: Tensor) -> bool:
    """Whether this module is for where the logits are, else `fused`."""
    return logits.device.type == "cpu"


def no_sums(rows: int, like: Tensor) -> Sums:
    """Of no block yet."""
    return Sums(like.new_full((rows,), -torch.inf), *(like.new_zeros(rows) for _ in range(5)))


def add_block(sums: Sums, logits: Tensor, column: Tensor, asked: Asked, scratch: Tensor) -> Sums:
    """`sums` with one more block.

    logits: [N, v]. column: int64 [N], where in it the target lies; outside it, where it does not. scratch: [N, v], may be the block itself,
    which is then lost.
    """
    top, mass, lean, total, squares, picked = sums
    inside, place = within(column, logits.shape[1])
    picked = torch.where(inside, logits.gather(1, place[:, None])[:, 0], picked)
    if asked.mean:
        total = total + logits.sum(1)
    highest = torch.maximum(top, logits.amax(1))
    fall = torch.where(top == highest, 0.0, top - highest)
    scale = fall.exp()
    shifted = torch.sub(logits, highest[:, None], out=scratch)
    if asked.entropy:
        grown = shifted.exp()
        lean = scale * _leant(lean, mass, fall) + (shifted * grown).sum(1)
    else:
        grown = shifted.exp_()
    if asked.collision:
        squares = scale.square() * squares + grown.square().sum(1)
    return Sums(highest, scale * mass + grown.sum(1), lean, total, squares, picked)


def block_slopes(logits: Tensor, column: Tensor, lse: Tensor, slopes: Slopes, head: HeadSpec, dtype: torch.dtype, out: Tensor) -> Tensor:
    """Gradient [N, v], in `dtype`, with respect to a block of `hidden @ weight.T`.

    logits: [N, v], final. column: as in `add_block`. out: [N, v], may be the logits themselves, which are then lost.
    """
    before = None if head.softcap is None else logits.clone() if out.data_ptr() == logits.data_ptr() else logits
    logp = torch.sub(logits, lse[:, None], out=out)
    if slopes.by_entropy is None or slopes.entropy is None:
        d = logp.exp_().mul_(slopes.by_mass[:, None])
    else:
        lean = slopes.by_mass[:, None] - (logp + slopes.entropy[:, None]).mul_(slopes.by_entropy[:, None])
        d = logp.exp_().mul_(lean)
    if slopes.by_all is not None:
        d += slopes.by_all[:, None]
    if slopes.by_target is not None:
        inside, place = within(column, logits.shape[1])
        d.scatter_add_(1, place[:, None], (slopes.by_target.to(d.dtype) * inside)[:, None])
    return times_slope(d, before, head).to(dtype)


def _leant(lean: Tensor, mass: Tensor, fall: Tensor) -> Tensor:
    """sum e^(l - top) (l - top) before it is scaled to a top that is higher by -fall, infinite before the first block (the mass is 0)."""
    return lean + torch.where(mass > 0, fall, 0.0) * mass
