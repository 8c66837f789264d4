"""What the methods share that learn from sampled tokens by a policy loss, whatever their advantages come from."""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from posttrain.errors import ConfigError, Problem
from posttrain.functional.importance import correction
from posttrain.functional.policy import aggregate
from posttrain.methods.parts.online import Online, column
from posttrain.methods.parts.recipe import Recipe
from posttrain.types import PolicyTokens, TokenStats, TokenTree

MEASURES = ("mismatch/abs", "mismatch/kl", "mismatch/outside")


class Surrogate(Online, ABC):
    """An online method with a loss on sampled tokens that carry advantages.

    loss: from posttrain.functional.policy. importance: from posttrain.functional.importance, corrects for a sampler whose
    log-probabilities differ from the trainer's, or that draws from a truncated or penalised distribution; None leaves them alone (the
    mismatch is logged, and off_policy/* for that distribution). entropy_coef: of an entropy bonus,
    averaged as the loss is. Further keys: see `posttrain.methods.parts.online.Online`.
    """

    loss_inputs: ClassVar[tuple[str, ...]] = ("tokens",)

    def __init__(
        self,
        recipe: Recipe,
        *,
        loss: Callable[..., tuple[Tensor, dict[str, Tensor]]],
        importance: Callable[..., tuple[Tensor, dict[str, Tensor]]] | None = None,
        entropy_coef: float = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(recipe, **common)
        self.loss, self.importance, self.entropy_coef = loss, importance, entropy_coef
        self.aggregation: Any = inspect.signature(loss).parameters["aggregation"].default
        self._try()

    def _try(self) -> None:
        """Let loss, importance and pull object to their options before a model is built. Raises ConfigError."""
        two, answers = torch.zeros(2), torch.zeros(2, dtype=torch.int64)
        tokens = PolicyTokens(two, two, two, two + 1, answers, torch.tensor([2]), 2.0, 1, self.longest)
        compare = self.importance or correction
        trials: dict[str, Callable[[], object]] = {
            "method.loss": lambda: self.loss(tokens),
            "method.importance": lambda: compare(two, two, answers, 1),
            "method.kl": lambda: self.kl.of(two, two, two + 1),
        }
        for where, trial in trials.items():
            try:
                trial()
            except ValueError as error:
                raise ConfigError(Problem(where, str(error))) from error

    @property
    def pull(self) -> float:
        """The present coefficient of the divergence from the reference."""
        return self.kl.coef

    def policy_loss(self, tree: TokenTree, tokens: PolicyTokens, stats: TokenStats) -> tuple[Tensor, dict[str, Tensor]]:
        """This micro-batch's part of the policy's loss, bonus and pull included, and parts of metrics."""
        assert stats.entropy is not None
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
                loss = loss + self.pull * aggregate(divergence, plain, aggregation=self.aggregation)
            metrics["kl"] = _mean(divergence, tree)
        metrics["entropy"] = _mean(stats.entropy, tree)
        return loss, metrics

    def _corrected(self, tree: TokenTree, tokens: PolicyTokens) -> tuple[PolicyTokens, dict[str, Tensor]]:
        """The tokens with the correction for the distribution that was drawn from, and the raw mismatch as parts of the step's means.

        mismatch/*: to the sampler's log-probabilities before truncation and penalties. off_policy/*: to those after them, if there are any.
        """
        compare = self.importance or partial(correction, most=None)
        weights, sums = compare(tokens.old, column(tree, "sampler"), tokens.sequence, len(tokens.lengths))
        parts = {name: sums[name] / tokens.step_tokens for name in MEASURES}
        if "drawn" in tree.columns:
            weights, sums = compare(tokens.old, column(tree, "drawn"), tokens.sequence, len(tokens.lengths))
            parts |= {name.replace("mismatch", "off_policy"): sums[name] / tokens.step_tokens for name in MEASURES}
        return tokens if self.importance is None else replace(tokens, correction=weights), parts

    def after_step(self, sums: Mapping[str, float]) -> None:
        self.look_for_alarms(sums)


def _mean(values: Tensor, tree: TokenTree) -> Tensor:
    """This tree's part of the mean over the step's tokens."""
    return (values.detach() * tree.weight).sum() / max(tree.share.weight, 1.0)
