"""A running mean that travels with checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningMean(nn.Module):
    """Mean of everything that was added so far, float64; 0 at the start."""

    mean: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def add(self, mean: float, *, count: int) -> None:
        """Take in `count` values of this mean."""
        self.count += count
        self.mean += (mean - self.mean) * count / self.count
