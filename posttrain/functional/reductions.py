"""Reductions of per-token values that do not depend on how a step is cut into micro-batches and ranks."""

from __future__ import annotations

from torch import Tensor


def weighted_sum(values: Tensor, weight: Tensor) -> Tensor:
    """Sum over tokens of weight * value, in float32 or wider. values, weight: [N]."""
    return (values * weight.to(values.dtype)).sum()


def step_mean(values: Tensor, weight: Tensor, denominator: float) -> Tensor:
    """This micro-batch's part of the step's weighted mean: sum(weight * value) / denominator.

    denominator: sum of the weights over the whole optimizer step (all micro-batches and ranks), so that the parts add up to the mean
    of the step. Raises ValueError if it is not positive.
    """
    if denominator <= 0:
        raise ValueError(f"the step's denominator must be positive, got {denominator}")
    return weighted_sum(values, weight) / denominator


def segment_sum(values: Tensor, segment: Tensor, segments: int) -> Tensor:
    """Sum of token values per segment: values [N], segment [N] in 0..segments-1 -> [segments]."""
    return values.new_zeros(segments).index_add_(0, segment, values)
