"""Policy gradients without a critic: GRPO and its kin, RLOO, REINFORCE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from posttrain.methods.base import Recipe
from posttrain.methods.parts.online import spread, with_columns
from posttrain.methods.parts.passes import Columns, per_answer
from posttrain.methods.parts.surrogate import Surrogate
from posttrain.types import GroupRewards, Part, Rollout, TokenizedExample, TokenTree


@final
class PolicyGradient(Surrogate):
    """A policy loss on the tokens of sampled answers, weighted by advantages that come from comparing the answers to a prompt.

    advantage: from posttrain.functional.advantages. Further keys: see `posttrain.methods.parts.surrogate.Surrogate`.
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

    def annotate(self, rollout: Rollout, parts: Sequence[Part]) -> list[TokenizedExample]:
        columns = self.read(parts)
        rewards = self._penalised(rollout.rewards, parts, columns) if self.referenced and self.kl.place == "reward" else rollout.rewards
        kept = torch.from_numpy(rollout.kept)
        advantages = self.advantage(replace(rewards, total=rewards.total.masked_fill(~kept, float("nan"))))
        known = [{**self.for_loss(some), "advantage": spread(part, advantages)} for part, some in zip(parts, columns, strict=True)]
        return with_columns(parts, known)

    def _penalised(self, rewards: GroupRewards, parts: Sequence[Part], columns: Sequence[Columns]) -> GroupRewards:
        """Rewards less coef * the sum of each answer's divergence from the reference."""
        total = rewards.total.clone()
        for part, known in zip(parts, columns, strict=True):
            old, reference = (per_answer(part.tree, known[name]) for name in ("old", "reference"))
            for answer, ours, theirs in zip(part.answers, old, reference, strict=True):
                total[part.group, answer] -= self.kl.coef * self.kl.of(torch.from_numpy(ours), torch.from_numpy(theirs)).double().sum()
        return replace(rewards, total=total)

    def loss_of(self, tree: TokenTree) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor]]:
        stats, aux = self.model(tree, temperature=self.temperature, entropy=True)
        loss, metrics = self.policy_loss(tree, self.policy_tokens(tree, stats.logps), stats)
        return loss, aux, metrics
