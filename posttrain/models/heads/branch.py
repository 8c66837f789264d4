"""A reward of several qualities: which of them matter here, how good each is, and a second look."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from posttrain.errors import ConfigError, Problem
from posttrain.functional.reward import attribute_loss
from posttrain.models.heads.registry import RewardHead, head, layers
from posttrain.types import Judged


@head("branch")
class Branch(RewardHead):
    """r = attribute_share sum_k w_k s_k + recurrent_share g: Better AI's branch-and-rethink head.

    z is the state at the answer's last token; w = softmax(MLP(z)) over the attributes, s_k = sigmoid(MLP(z)) is how good the answer is in
    attribute k, g = MLP(h_3), h_t = GRU(z, h_{t-1}), h_0 = 0: the state read `looks` times. Its source leaves open what the MLPs are and
    what bounds g; here each has one hidden layer of `width` units with GELU, and g is unbounded, so that differences of rewards can be
    as large as Bradley-Terry wants them, and r does not lie in [0, 1]. Where the data rate an attribute, attribute_weight times the
    cross-entropy of s_k with the rating is added to the loss; attributes without ratings are learnt from the preferences alone.
    (The published BR-RM, arXiv:2510.23596, is a generative judge, another thing.)
    """

    def __init__(
        self,
        hidden_size: int,
        attributes: Sequence[str],
        *,
        attribute_share: float = 0.7,
        recurrent_share: float = 0.3,
        attribute_weight: float = 1.0,
        looks: int = 3,
        width: int = 128,
    ) -> None:
        if not attributes:
            raise ConfigError(Problem("data.attributes", "the branch head needs at least one attribute", "data.attributes=[readability]"))
        shares = {"attribute_share": attribute_share, "recurrent_share": recurrent_share, "attribute_weight": attribute_weight}
        super().__init__(hidden_size, attributes, {**shares, "looks": looks, "width": width})
        self.shares = attribute_share, recurrent_share
        self.attribute_weight = attribute_weight
        self.looks = looks
        self.gate = layers(hidden_size, width, len(attributes))
        self.quality = layers(hidden_size, width, len(attributes))
        self.recurrent = nn.GRUCell(hidden_size, width)
        self.rethink = layers(width, width, 1)

    def forward(self, state: Tensor) -> Judged:
        quality = self.quality(state).sigmoid()
        memory = state.new_zeros(len(state), self.recurrent.hidden_size)
        for _ in range(self.looks):
            memory = self.recurrent(state, memory)
        reward = self.shares[0] * (self.weights(state) * quality).sum(-1) + self.shares[1] * self.rethink(memory)[:, 0]
        return Judged(reward, attributes=quality)

    def weights(self, state: Tensor) -> Tensor:
        """How much each attribute matters, [A, K], summing to one."""
        return torch.softmax(self.gate(state), -1)

    @property
    def learns_ratings(self) -> bool:
        return self.attribute_weight != 0

    def auxiliary(self, judged: Judged, targets: Tensor) -> Tensor | None:
        """The loss of rated attributes, [A]."""
        assert judged.attributes is not None
        return self.attribute_weight * attribute_loss(judged.attributes, targets)
