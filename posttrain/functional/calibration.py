"""How far a reward model's preferences can be trusted: calibration, and whether length decides. Pure functions of P pairs.

margin: reward of the chosen minus the rejected answer, [P]. Which of two answers is called the chosen one is arbitrary to the model, so
its confidence is max(p, 1 - p), p = sigmoid(margin), and lies in [1/2, 1].
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from posttrain.functional.pairs import preferred


def reliability_sums(margin: Tensor, *, bins: int = 10) -> Tensor:
    """For each of `bins` equal parts of [1/2, 1]: pairs, summed confidence, and pairs where the chosen answer won (ties half), [bins, 3].

    float64; sums of several batches add up.
    """
    confidence = margin.double().abs().sigmoid()
    place = ((confidence - 0.5) * 2 * bins).long().clamp(0, bins - 1)
    facts = torch.stack([torch.ones_like(confidence), confidence, preferred(margin).double()], 1)
    return facts.new_zeros(bins, 3).index_add_(0, place, facts)


def calibration_error(sums: Tensor) -> float:
    """Expected calibration error: mean over pairs of |accuracy - confidence| of their bin (arXiv:1706.04599, eq. 3). NaN without pairs.

    sums: from `reliability_sums`, [bins, 3].
    """
    return float((sums[:, 2] - sums[:, 1]).abs().sum() / sums[:, 0].sum())


def reliability_table(sums: Tensor) -> list[dict[str, float]]:
    """A row for each bin: its bounds, pairs, mean confidence and accuracy (NaN where it is empty)."""
    edges = torch.linspace(0.5, 1.0, len(sums) + 1).tolist()
    rows = zip(edges, edges[1:], sums.tolist(), strict=False)
    nan = float("nan")
    return [
        {"from": low, "to": high, "pairs": n, "confidence": c / n if n else nan, "accuracy": right / n if n else nan}
        for low, high, (n, c, right) in rows
    ]


def accuracy_by_length(margin: Tensor, difference: Tensor, *, buckets: int = 5) -> list[dict[str, float]]:
    """Accuracy in `buckets` of about as many pairs each, by the chosen answer's length minus the rejected one's.

    difference: tokens, [P]. A bucket holds whole groups of equal differences; fewer buckets where there are fewer different values.
    """
    if not len(margin):
        return []
    edges = difference.double().quantile(torch.linspace(0, 1, buckets + 1, dtype=torch.float64)).unique()
    place = torch.bucketize(difference.double(), edges[1:-1], right=True) if len(edges) > 2 else torch.zeros(len(margin), dtype=torch.long)
    won = preferred(margin).double()
    rows = []
    for number in place.unique().tolist():
        inside = place == number
        rows.append({
            "from": float(difference[inside].min()), "to": float(difference[inside].max()),
            "pairs": float(inside.sum()), "accuracy": float(won[inside].mean()),
        })  # fmt: skip
    return rows


def correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's correlation of two [N]; NaN where either does not vary. Of rewards and lengths: the length bias."""
    centred = torch.stack([one.double() - one.double().mean(), other.double() - other.double().mean()])
    norms = centred.norm(dim=1)
    return float((centred[0] * centred[1]).sum() / norms.prod()) if len(one) > 1 and bool((norms > 0).all()) else float("nan")


def moments(one: Tensor, other: Tensor) -> Tensor:
    """Count, sums, sums of squares and of products of two [N], float64 [6]; those of several batches add up. See `pearson`."""
    x, y = one.double(), other.double()
    return torch.stack([x.new_tensor(float(len(x))), x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()])


def pearson(sums: Tensor) -> float:
    """Correlation from `moments`; NaN where either does not vary."""
    n, x, y, xx, yy, xy = sums.tolist()
    spread = (n * xx - x * x) * (n * yy - y * y)
    return (n * xy - x * y) / spread**0.5 if spread > 0 else float("nan")


def named(prefix: str, values: Tensor) -> dict[str, Tensor]:
    """A tensor's numbers under names, so that they can be summed with others: see `unnamed`."""
    return {f"{prefix}/{'/'.join(map(str, place))}": values[place] for place in itertools.product(*map(range, values.shape))}


def unnamed(prefix: str, sums: Mapping[str, float]) -> Tensor:
    """The tensor that `named` took apart, float64."""
    places = {tuple(map(int, name.split("/")[1:])): value for name, value in sums.items() if name.startswith(f"{prefix}/")}
    found = torch.zeros([size + 1 for size in map(max, zip(*places, strict=True))], dtype=torch.float64)
    for place, value in places.items():
        found[place] = value
    return found
