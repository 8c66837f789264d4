"""Policy gradients without a critic: GRPO and its kin, RLOO, REINFORCE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from posttrain.functional.advantages import of_groups
from posttrain.methods.parts.online import spread, with_columns
from posttrain.methods.parts.passes import Columns, per_answer
from posttrain.methods.parts.recipe import Recipe
from posttrain.methods.parts.surrogate import Surrogate
from posttrain.types import GroupRewards, Part, Rollout, TokenizedExample, TokenTree

ROUNDING = 1e-6  # an advantage up to this is a difference of equal rewards


@final
class PolicyGradient(Surrogate):
    """A policy loss on the tokens of sampled answers, weighted by advantages that come from comparing the answers to a prompt.

    advantage: from posttrain.functional.advantages; one up to ROUNDING counts as 0. A step whose advantages are all 0, without a pull or a
    bonus in its loss, leaves weights and optimizer as they are. Further keys: see `posttrain.methods.parts.surrogate.Surrogate`.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        advantage: Callable[[GroupRewards], Tensor],
        **common: Any,
    ) -> None:
        super().__init__(recipe, **common)
        self.advantage = advantage

    def informative(self, rollout: Rollout) -> np.ndarray:
        """bool [P]: groups in which a kept answer has an advantage of more than rounding; a pull in the reward is not looked at."""
        return np.asarray(((self.advantage(rollout.rewards).abs() > ROUNDING).numpy() & rollout.kept).any(1))

    @property
    def penalised(self) -> bool:
        """Whether the pull towards the reference is part of the reward."""
        return self.referenced and self.kl.place == "reward"

    def beside(self, rollout: Rollout) -> np.ndarray:
        """Where the pull is part of the reward, the answers that others are compared with have one too."""
        scored = ~rollout.rewards.total.isnan().numpy()
        return np.asarray(self.penalised & scored & ~rollout.kept & rollout.kept.any(1, keepdims=True))

    def annotate(self, rollout: Rollout, parts: Sequence[Part]) -> list[TokenizedExample]:
        columns = self.read(parts)
        rewards = of_groups(rollout.rewards, torch.from_numpy(rollout.kept.any(1)))
        if self.penalised:
            rewards = self._penalised(rewards, parts, columns)
        advantages = self.advantage(rewards)
        advantages = advantages.masked_fill(advantages.abs() <= ROUNDING, 0.0)  # which an optimizer of ratios would make steps of
        known = [{**self.for_loss(some), "advantage": spread(part, advantages)} for part, some in zip(parts, columns, strict=True)]
        return with_columns(parts, known)

    def _penalised(self, rewards: GroupRewards, parts: Sequence[Part], columns: Sequence[Columns]) -> GroupRewards:
        """Rewards less coef * the sum of each answer's divergence from the reference, which is a component of weight -coef."""
        pull = torch.zeros_like(rewards.total).masked_fill(rewards.total.isnan(), float("nan"))
        for part, known in zip(parts, columns, strict=True):
            old, reference = (per_answer(part.tree, known[name]) for name in ("old", "reference"))
            for answer, ours, theirs in zip(part.answers, old, reference, strict=True):
                pull[part.group, answer] = self.kl.of(torch.from_numpy(ours), torch.from_numpy(theirs)).double().sum()
        weights = torch.cat([rewards.weights, rewards.weights.new_tensor([-self.kl.coef])])
        return GroupRewards(rewards.total - self.kl.coef * pull, torch.cat([rewards.parts, pull[None]]), weights)

    def loss_of(self, tree: TokenTree) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor]]:
        stats, aux = self.model(tree, temperature=self.temperature, entropy=True)
        loss, metrics = self.policy_loss(tree, self.policy_tokens(tree, stats.logps), stats)
        return loss, aux, metrics
