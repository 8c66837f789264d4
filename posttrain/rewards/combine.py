"""From the values of several components to one reward: pure, and the same however answers are spread over ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from posttrain.rewards.base import Reward

SAME = 1e-9  # of the largest value: smaller standard deviations are rounding


def combine(raw: Tensor, groups: Tensor, components: Sequence[Reward]) -> tuple[Tensor, Tensor]:
    """Total [n] and parts [K, n] of a rollout's answers, float64.

    raw: [K, n], the components' values on all ranks, NaN where one failed. groups: [n], equal for answers to one prompt. A part is its
    component's value, normalised, weighted by difficulty, clipped, in this order, before its weight; statistics leave out NaN. The total
    is NaN where a part is that has a weight. Bit for bit independent of the answers' order.
    """
    if not components:
        raise ValueError("a reward has one component at least")
    raw = raw.double()
    parts = torch.stack([part(values, groups, component) for values, component in zip(raw, components, strict=True)])
    weighted = [component.weight * values for component, values in zip(components, parts, strict=True) if component.weight]
    return (torch.stack(weighted).sum(0) if weighted else torch.zeros_like(parts[0])), parts


def plain(raw: Tensor, components: Sequence[Reward]) -> Tensor:
    """The weighted sum [n] of raw values [K, n]: what is reported, for normalised rewards have the same mean whatever the answers are.

    NaN where a component with a weight failed; zeros where none has one.
    """
    weighted = [component.weight * values for component, values in zip(components, raw.double(), strict=True) if component.weight]
    return torch.stack(weighted).sum(0) if weighted else raw.new_zeros(raw.shape[1:]).double()


def part(values: Tensor, groups: Tensor, component: Reward) -> Tensor:
    """One component's values [n], made ready for the sum."""
    made = NORMALISERS[component.normalise](values, groups)
    if component.difficulty:
        made = made * (1 + component.difficulty * (1 - pass_rate(values, groups)))
    return made if component.clip is None else made.clamp(-component.clip, component.clip)


def standardised(values: Tensor) -> Tensor:
    """Values [n] less their mean, by their standard deviation (of the population); zeros where all are equal. NaN stay and do not count."""
    known = values[~values.isnan()].sort().values  # sorted: sums do not depend on the order
    if not len(known):
        return values
    centred = values - known.mean()
    deviation = (known - known.mean()).square().mean().sqrt()
    return centred / deviation if deviation > SAME * known.abs().max() else centred * 0


def by_group(values: Tensor, groups: Tensor) -> Tensor:
    """`standardised` within each group."""
    made = torch.empty_like(values)
    for group in groups.unique():
        here = groups == group
        made[here] = standardised(values[here])
    return made


def pass_rate(values: Tensor, groups: Tensor) -> Tensor:
    """[n]: the share of values above 0 in the answer's group, of those that are known; 0 where none is."""
    _, place = groups.unique(return_inverse=True)
    count = torch.zeros(int(place.max()) + 1 if len(place) else 0, dtype=torch.float64)
    above = count.scatter_add(0, place, (values > 0).double())  # whole numbers: exact in any order
    known = count.scatter_add(0, place, (~values.isnan()).double())
    return (above / known.clamp(min=1))[place]


NORMALISERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda values, _: values,
    "batch": lambda values, _: standardised(values),
    "group": by_group,
}
