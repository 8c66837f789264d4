"""Proximal policy optimisation: a policy and its critic in one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from posttrain.functional.gae import gae, mean_and_variance, missing_end, moments, token_rewards, value_loss, whiten
from posttrain.methods.parts.critic import Answers, Coefficient, answers_of, as_columns, explained_variance, with_own_rate
from posttrain.methods.parts.online import KL, column, with_columns
from posttrain.methods.parts.recipe import Recipe
from posttrain.methods.parts.surrogate import Surrogate
from posttrain.models.artifact import ArtifactRecord, save_artifact
from posttrain.models.reward import hidden_size
from posttrain.models.values import value_head, values_at, write_value_head
from posttrain.types import Part, Rollout, TokenizedExample, TokenStats, TokenTree

PULL = KL(coef=0.05, estimator="k1", place="reward")


@final
class PPO(Surrogate):
    """PPO (arXiv:1707.06347) on the tokens of sampled answers, with generalised advantages (arXiv:1506.02438) of a critic.

    The critic is a linear head on the policy's own states: one forward pass gives log-probabilities and values. A token is rewarded with
    -kl.coef times the divergence from the reference (kl.place=reward), the last one with the answer's reward as well. Advantages are
    whitened over the whole rollout.

    gamma, lam: discounts of rewards and of advantages. missing_end: taken off the reward of answers that were cut off. whiten_rewards: give
    the tokens' rewards a standard deviation of 1 over the rollout, their mean stays. value_coef: of the value loss. value_clip: how far a
    value may leave the rollout's before it stops being followed; None: as far as it likes. value_detach: keep the value loss from the
    model below the head. value_lr: learning rate of the head, which follows the schedule too; None: the optimizer's. value_from: artifact
    whose value head, or scalar reward head, the critic starts from; None: from 0. target_kl: once a step finds the policy further than
    this from the one that sampled (ratio/kl, nats a token, over the step), the rollout's remaining steps are left out: they compute
    nothing and move nothing, while the schedule of the learning rate goes on. kl_target: divergence from the reference, nats an answer,
    that kl.coef is adapted to after every rollout, at `kl_rate`; None: it stays. Further keys: see
    `posttrain.methods.parts.surrogate.Surrogate`.
    """

    stopped: Tensor

    def __init__(
        self,
        recipe: Recipe,
        *,
        loss: Callable[..., tuple[Tensor, dict[str, Tensor]]],
        importance: Callable[..., tuple[Tensor, dict[str, Tensor]]] | None = None,
        entropy_coef: float = 0.0,
        kl: KL = PULL,
        kl_target: float | None = None,
        kl_rate: float = 0.1,
        gamma: float = 1.0,
        lam: float = 0.95,
        missing_end: float = 0.0,
        whiten_rewards: bool = False,
        value_coef: float = 0.1,
        value_clip: float | None = 0.2,
        value_detach: bool = False,
        value_lr: float | None = None,
        value_from: str | None = None,
        target_kl: float | None = None,
        minibatches: int = 1,
        rollout_epochs: int = 4,
        temperature: float = 1.0,
        longest: int = 256,
        difficulty_low: float = 0.0,
        difficulty_high: float = 1.0,
        mask_truncated: bool = False,
        reference: Literal["auto", "adapters", "copy"] = "auto",
        reference_update_every: int | None = None,
        reference_update_mix: float = 0.6,
    ) -> None:
        super().__init__(
            recipe, loss=loss, importance=importance, entropy_coef=entropy_coef, kl=kl, minibatches=minibatches,
            rollout_epochs=rollout_epochs, temperature=temperature, longest=longest, mask_truncated=mask_truncated,
            difficulty_low=difficulty_low, difficulty_high=difficulty_high, reference=reference,
            reference_update_every=reference_update_every, reference_update_mix=reference_update_mix,
        )  # fmt: skip
        self.gamma, self.lam, self.missing_end, self.whiten_rewards = gamma, lam, missing_end, whiten_rewards
        self.value_coef, self.value_clip, self.value_detach, self.value_lr = value_coef, value_clip, value_detach, value_lr
        self.value_from = None if value_from is None else Path(value_from)
        self.target_kl = target_kl
        self.value_head: nn.Linear | None = None
        self.coefficient = Coefficient(kl.coef, target=kl_target, rate=kl_rate)
        self.register_buffer("stopped", torch.tensor(False), persistent=target_kl is not None)
        self.shown: dict[str, float] = {}  # of the present rollout, until its first step is reported

    def build_beside(self) -> None:
        super().build_beside()
        self.value_head = value_head(hidden_size(self.model), self.value_from)

    def modules_beside(self, width: int) -> list[nn.Module]:
        return [value_head(width)]

    def make_optimizer(self) -> Optimizer:
        if self.value_lr is None:
            return super().make_optimizer()
        return with_own_rate(self.recipe.optimizer, self.trained_parameters(), prefix="value_head.", lr=self.value_lr)

    @property
    def pull(self) -> float:
        return float(self.coefficient.value)

    @property
    def keeps_old(self) -> bool:
        return True  # values are read in the same pass

    def informative(self, rollout: Rollout) -> np.ndarray:
        """bool [P]: a critic compares answers to different prompts, so it learns from any group unless all rewards are alike."""
        values = rollout.rewards.total.numpy()[rollout.kept]
        return np.asarray(rollout.kept.any(1) & bool(len(values) and values.min() < values.max()))

    def look(self, tree: TokenTree, **asked: Any) -> tuple[TokenStats, Tensor, Tensor | None]:
        """Statistics of a tree's targets, values [N] of the states before them, and the auxiliary loss of a mixture of experts."""
        assert self.value_head is not None
        hidden, aux = self.model.hidden(tree)
        values = values_at(self.value_head, hidden.detach() if self.value_detach else hidden, tree.source)
        return self.model.stats(hidden, tree, temperature=self.temperature, **asked), values, aux

    def read_policy(self, tree: TokenTree) -> Mapping[str, Tensor]:
        stats, values, _ = self.look(tree)
        return {"old": stats.logps, "values": values}

    def annotate(self, rollout: Rollout, parts: Sequence[Part]) -> list[TokenizedExample]:
        self.coefficient.begin()
        columns = self.read(parts)
        answers = answers_of(rollout, parts, columns)
        advantages, returns = gae(self._rewards(answers), answers.values, answers.lengths, gamma=self.gamma, lam=self.lam)
        unit, sums = torch.ones_like(advantages), moments(advantages, torch.ones_like(advantages))
        self.shown = {
            "value/explained_variance": explained_variance(answers.values, returns),
            "value/mean": mean_and_variance(moments(answers.values, unit))[1],
            "returns/mean": mean_and_variance(moments(returns, unit))[1],
            "advantage/mean": mean_and_variance(sums)[1],
            "advantage/std": mean_and_variance(sums)[2] ** 0.5,
        }
        self._follow(answers)
        found = zip(columns, as_columns(parts, whiten(advantages, unit, sums)), as_columns(parts, returns), strict=True)
        return with_columns(parts, [{**self.for_loss(known), "advantage": some, "returns": value} for known, some, value in found])

    def _rewards(self, answers: Answers) -> Tensor:
        """The reward of each token, [N]."""
        reference, pull = (answers.old, 0.0) if answers.reference is None or self.kl.place == "loss" else (answers.reference, self.pull)
        scores = missing_end(answers.score, answers.ended, penalty=self.missing_end)
        rewards = token_rewards(
            scores, answers.old, reference, answers.lengths, coef=pull, estimator=self.kl.estimator, clamp=self.kl.clamp
        )
        unit = torch.ones_like(rewards)
        return whiten(rewards, unit, moments(rewards, unit), shift_mean=False) if self.whiten_rewards else rewards

    def _follow(self, answers: Answers) -> None:
        """Report the divergence of the rollout's answers and the coefficient in force, and set that of the next rollout."""
        if answers.reference is None or not len(answers.lengths):
            return
        divergence = float(self.kl.of(answers.old, answers.reference).sum()) / len(answers.lengths)
        self.shown |= {"kl/answer": divergence, "kl/coef": self.pull}
        self.coefficient.follow(divergence)

    def loss_of(self, tree: TokenTree) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor]]:
        stats, values, aux = self.look(tree, entropy=True)
        tokens = self.policy_tokens(tree, stats.logps)
        loss, metrics = self.policy_loss(tree, tokens, stats)
        old, returns = column(tree, "values"), column(tree, "returns")
        error, found = value_loss(values, old, returns, tree.weight, tokens.step_tokens, clip=self.value_clip)
        return loss + self.value_coef * error, aux, {**metrics, **found, "policy/loss": loss, "value/loss": error}

    @property
    def idle(self) -> bool:
        return bool(self.stopped)

    def before_step(self, step: int) -> None:
        super().before_step(step)
        if step % self.steps_per_rollout == 0:
            self.stopped.fill_(False)

    def after_step(self, sums: Mapping[str, float]) -> None:
        super().after_step(sums)
        if self.target_kl is not None and sums.get("ratio/kl", 0.0) > self.target_kl:
            self.stopped.fill_(True)

    def step_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        shown, self.shown = self.shown, {}
        stopped = {} if self.target_kl is None else {"stopped": float("ratio/kl" not in sums)}
        return {**sums, **stopped, **shown}

    def hand_on(self, tokenizer: PreTrainedTokenizerBase, folder: Path, *, record: ArtifactRecord) -> Path:
        assert self.value_head is not None
        beside = partial(write_value_head, self.value_head)
        return save_artifact(self.model.model, tokenizer, folder, record=record, beside=beside)  # type: ignore[arg-type]
