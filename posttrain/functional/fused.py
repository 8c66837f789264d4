"""What `blocks` does to a block of logits, in one pass over a device's memory.

The products of a head run near a device's full rate; as separate operations, what is done to their results takes several times as long,
since each reads and writes all of them. Compiled, it is one kernel forward and one backward (Cut Cross-Entropy, arXiv:2411.09009, section
4, has the products in it too; here they are PyTorch's own).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from posttrain.functional.blocks import Asked, Slopes, Sums
from posttrain.functional.head import HeadSpec, within

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def add_block(sums: Sums, logits: Tensor, column: Tensor, asked: Asked) -> Sums:
    """See `blocks.add_block`; the logits stay."""
    top, mass, lean, total, squares, picked = sums
    inside, place = within(column, logits.shape[1])
    picked = torch.where(inside, logits.gather(1, place[:, None])[:, 0], picked)
    highest = torch.maximum(top, logits.amax(1))
    fall = torch.where(top == highest, 0.0, top - highest)
    scale, shifted = fall.exp(), logits - highest[:, None]
    grown = shifted.exp()
    if asked.entropy:  # before the first block the mass is 0 and the fall infinite
        lean = scale * (lean + torch.where(mass > 0, fall, 0.0) * mass) + (shifted * grown).sum(1)
    if asked.mean:
        total = total + logits.sum(1)
    if asked.collision:
        squares = scale.square() * squares + grown.square().sum(1)
    return Sums(highest, scale * mass + grown.sum(1), lean, total, squares, picked)


def block_slopes(logits: Tensor, column: Tensor, lse: Tensor, slopes: Slopes, head: HeadSpec, dtype: torch.dtype) -> Tensor:
    """See `blocks.block_slopes`; the logits stay."""
    logp = logits - lse[:, None]
    d = slopes.by_mass[:, None]
    if slopes.by_entropy is not None and slopes.entropy is not None:
        d = d - (logp + slopes.entropy[:, None]) * slopes.by_entropy[:, None]
    d = logp.exp() * d
    if slopes.by_all is not None:
        d = d + slopes.by_all[:, None]
    if slopes.by_target is not None:
        at_target = torch.arange(logits.shape[1], device=logits.device) == column[:, None]
        d = d + torch.where(at_target, slopes.by_target[:, None], 0.0)
    if head.softcap is not None:
        d = d * (1 - (logits * (head.temperature / head.softcap)).square())
    return (d * (head.scale / head.temperature)).to(dtype)


def compiled(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """function(...), compiled; as it is, with one line in the log, where it cannot be compiled."""
    if function not in _plain:
        try:
            return cast(R, _kernel(function)(*args, **kwargs))
        except RuntimeError as reason:
            if not type(reason).__module__.startswith("torch._"):  # what the operations themselves raise
                raise
            _plain.add(function)
            log.warning("the head is not compiled for this device, which costs speed: %s", " ".join(str(reason).split())[:300])
    return function(*args, **kwargs)


_plain: set[Callable[..., Any]] = set()


@cache
def _kernel(function: Callable[..., Any]) -> Any:
    return torch.compile(function, dynamic=True)
