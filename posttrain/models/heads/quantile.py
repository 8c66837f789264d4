"""A distribution of the reward, by its quantiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from posttrain.errors import ConfigError, Problem
from posttrain.functional.reward import ascending
from posttrain.models.heads.registry import RewardHead, head
from posttrain.types import Judged


@head("quantile")
class Quantile(RewardHead):
    """Q quantiles at the levels (k - 1/2) / Q (QR-DQN's midpoints, arXiv:1710.10044, lemma 2), which cannot cross.

    The lowest is a linear map of the state, each next one lies softplus of another above it. quantiles: Q. reward: their mean, or the
    middle one (the mean of the two middle ones where Q is even).
    """

    def __init__(
        self, hidden_size: int, attributes: Sequence[str], *, quantiles: int = 9, reward: Literal["mean", "median"] = "mean"
    ) -> None:
        if quantiles < 2:
            raise ConfigError(Problem("method.head.quantiles", f"expected an integer >= 2, got {quantiles}", "method.head=scalar for one"))
        super().__init__(hidden_size, attributes, {"quantiles": quantiles, "reward": reward})
        self.lowest = nn.Linear(hidden_size, 1)
        self.steps = nn.Linear(hidden_size, quantiles - 1)
        middle = torch.full((quantiles,), 1 / quantiles)
        if reward == "median":
            middle = torch.zeros(quantiles)
            middle[[(quantiles - 1) // 2, quantiles // 2]] = 1.0
            middle /= middle.sum()
        self.register_buffer("weights", middle, persistent=False)
        self.register_buffer("levels", (torch.arange(quantiles) + 0.5) / quantiles, persistent=False)
        self.weights: Tensor
        self.levels: Tensor

    def forward(self, state: Tensor) -> Judged:
        quantiles = ascending(self.lowest(state), self.steps(state))
        return Judged(quantiles @ self.weights, quantiles=quantiles, levels=self.levels)
