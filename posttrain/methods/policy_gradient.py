"""Policy gradients without a critic: GRPO and its kin, RLOO, REINFORCE."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from posttrain.functional.importance import correction
from posttrain.functional.policy import aggregate
from posttrain.methods.base import Recipe
from posttrain.methods.parts.alarms import RewardWatch
from posttrain.methods.parts.online import KL, NO_PULL, Online, column, spread, with_columns
from posttrain.methods.parts.passes import Columns, per_answer
from posttrain.types import GroupRewards, Part, PolicyTokens, Rollout, TokenizedExample, TokenTree


@final
class PolicyGradient(Online):
    """A policy loss on the tokens of sampled answers, weighted by advantages that come from comparing the answers to a prompt.

    loss: from posttrain.functional.policy. advantage: from posttrain.functional.advantages. importance: from
    posttrain.functional.importance, corrects for a sampler whose log-probabilities differ from the trainer's; None leaves them alone (the
    mismatch is logged). entropy_coef: of an entropy bonus, averaged as the loss is. Further keys: see
    `posttrain.methods.parts.online.Online`.
    """

    loss_inputs: ClassVar[tuple[str, ...]] = ("tokens",)

    def __init__(
        self,
        recipe: Recipe,
        *,
        loss: Callable[..., tuple[Tensor, dict[str, Tensor]]],
        advantage: Callable[[GroupRewards], Tensor],
        importance: Callable[..., tuple[Tensor, dict[str, Tensor]]] | None = None,
        entropy_coef: float = 0.0,
        kl: KL = NO_PULL,
        minibatches: int = 1,
        rollout_epochs: int = 1,
        temperature: float = 1.0,
        longest: int = 256,
        selection: Literal["keep", "drop", "resample"] = "keep",
        selection_tries: int = 4,
        mask_truncated: bool = False,
        reference: Literal["auto", "adapters", "copy"] = "auto",
        reference_update_every: int | None = None,
        reference_update_mix: float = 0.6,
    ) -> None:
        super().__init__(
            recipe, kl=kl, minibatches=minibatches, rollout_epochs=rollout_epochs, temperature=temperature, longest=longest,
            selection=selection, selection_tries=selection_tries, mask_truncated=mask_truncated, reference=reference,
            reference_update_every=reference_update_every, reference_update_mix=reference_update_mix,
        )  # fmt: skip
        self.loss, self.advantage, self.importance, self.entropy_coef = loss, advantage, importance, entropy_coef
        self.aggregation: Any = inspect.signature(loss).parameters["aggregation"].default
        self.watch = RewardWatch()

    def annotate(self, rollout: Rollout, parts: Sequence[Part]) -> list[TokenizedExample]:
        columns = self.read(parts)
        rewards = self._penalised(rollout.rewards, parts, columns) if self.referenced and self.kl.place == "reward" else rollout.rewards
        kept = torch.from_numpy(rollout.kept)
        advantages = self.advantage(replace(rewards, total=rewards.total.masked_fill(~kept, float("nan"))))
        known = [{**some, "advantage": spread(part, advantages)} for part, some in zip(parts, columns, strict=True)]
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
        assert stats.entropy is not None
        tokens = self.policy_tokens(tree, stats.logps)
        metrics: dict[str, Tensor] = {}
        if "sampler" in tree.columns:
            tokens, metrics = self._corrected(tree, tokens)
        loss, found = self.loss(tokens)
        metrics |= found
        plain = replace(tokens, correction=None)
        if self.entropy_coef:
            loss = loss - self.entropy_coef * aggregate(stats.entropy, plain, aggregation=self.aggregation)
        if tree.reference is not None:
            divergence = self.kl.of(stats.logps, tree.reference, (stats.logps - tokens.old).exp())
            if self.kl.place == "loss":
                loss = loss + self.kl.coef * aggregate(divergence, plain, aggregation=self.aggregation)
            metrics["kl"] = self._mean(divergence, tree)
        metrics["entropy"] = self._mean(stats.entropy, tree)
        return loss, aux, metrics

    def _corrected(self, tree: TokenTree, tokens: PolicyTokens) -> tuple[PolicyTokens, dict[str, Tensor]]:
        """The tokens with the correction for the sampler's own log-probabilities, and the raw mismatch as parts of the step's means."""
        compare = self.importance or partial(correction, most=None)
        weights, sums = compare(tokens.old, column(tree, "sampler"), tokens.sequence, len(tokens.lengths))
        parts = {name: sums[name] / tokens.step_tokens for name in ("mismatch/abs", "mismatch/kl", "mismatch/outside")}
        return tokens if self.importance is None else replace(tokens, correction=weights), parts

    def _mean(self, values: Tensor, tree: TokenTree) -> Tensor:
        """This tree's part of the mean over the step's tokens."""
        return (values.detach() * tree.weight).sum() / max(tree.share.weight, 1.0)

    def after_step(self, sums: Mapping[str, float]) -> None:
        notes = {} if self.steps is None else self.steps.notes(self.global_step - 1)
        self.watch.look(self.global_step, {**notes, **sums}, leads=self.global_rank == 0)
