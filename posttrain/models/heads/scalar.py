"""One linear map: what plain transformers calls a sequence classifier with one label."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from posttrain.models.heads.registry import RewardHead, head
from posttrain.types import Judged


@head("scalar")
class Scalar(RewardHead):
    """r = w z, without a bias, which differences of rewards would never train.

    w starts with a standard deviation of 1 / sqrt(H + 1) (arXiv:2009.01325, as in its code; arXiv:2403.17031, detail 11).
    """

    def __init__(self, hidden_size: int, attributes: Sequence[str]) -> None:
        super().__init__(hidden_size, attributes, {})
        self.score = nn.Linear(hidden_size, 1, bias=False)
        nn.init.normal_(self.score.weight, std=(hidden_size + 1) ** -0.5)

    def forward(self, state: Tensor) -> Judged:
        return Judged(self.score(state)[:, 0])
