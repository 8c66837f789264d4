"""Learning from pairs of answers: the DPO family, and its relatives without a reference policy."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from posttrain.errors import ConfigError, Problem
from posttrain.functional.pairs import implicit_rewards, pair_logps, preferred
from posttrain.methods.base import Method, Recipe
from posttrain.models.reference import AdaptersOff, FrozenCopy, Reference
from posttrain.types import PairLogps, TokenTree

PairLoss = Callable[[PairLogps], Tensor]


class Preference(Method, ABC):
    """Mean of a pair loss over the pairs of a step.

    loss: from posttrain.functional.preference; its `beta` also scales the rewards that are reported. sft_weight: coefficient of the
    chosen answers' negative log-likelihood per token, averaged over pairs (RPO, arXiv:2404.19733, eq. 1).
    """

    loss_inputs: ClassVar[tuple[str, ...]] = ("pairs",)
    data_kind: ClassVar[str] = "preference"

    def __init__(self, recipe: Recipe, *, loss: PairLoss, sft_weight: float = 0.0) -> None:
        super().__init__(recipe)
        self.loss = loss
        self.sft_weight = sft_weight
        self.beta = float(inspect.signature(loss).parameters["beta"].default)
        _try(loss)

    @abstractmethod
    def reference_logps(self, tree: TokenTree) -> Tensor | None:
        """Log-probabilities [N] of the tree's targets under the reference; None without one."""

    def loss_of(self, tree: TokenTree) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor]]:
        reference = self.reference_logps(tree)
        stats, aux = self.model(tree)
        sums = self._sums_of(pair_logps(stats.logps, reference, tree))
        parts = {name: value / tree.share.examples for name, value in sums.items()}
        return parts.pop("loss"), aux, parts

    def _sums_of(self, pairs: PairLogps) -> dict[str, Tensor]:
        """Sums over the pairs of a tree: of the loss and of what is reported."""
        losses = self.loss(pairs)
        sums = {}
        if self.sft_weight:
            nll = -pairs.chosen / pairs.chosen_length
            losses = losses + self.sft_weight * nll
            sums["nll"] = nll.detach().sum()
        chosen, rejected = (reward.detach() for reward in implicit_rewards(pairs, beta=self.beta))
        return {
            "loss": losses.sum(),
            "rewards/chosen": chosen.sum(),
            "rewards/rejected": rejected.sum(),
            "rewards/margin": (chosen - rejected).sum(),
            "rewards/accuracy": preferred(chosen - rejected).sum(),
            "logps/chosen": pairs.chosen.detach().sum(),
            "logps/rejected": pairs.rejected.detach().sum(),
        } | sums

    @torch.no_grad()
    def validation_parts(self, tree: TokenTree) -> Mapping[str, Tensor]:
        stats, _ = self.model(tree)
        pairs = pair_logps(stats.logps, self.reference_logps(tree), tree)
        return {**self._sums_of(pairs), "pairs": torch.tensor(float(len(pairs.chosen)))}

    def validation_summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {name: value / sums["pairs"] for name, value in sums.items() if name != "pairs"}


def _try(loss: PairLoss) -> None:
    """Let a loss object to its options before a model is built. Raises ConfigError."""
    zero = torch.zeros(1)
    try:
        loss(PairLogps(zero - 1, zero - 2, zero + 1, zero + 1, zero - 1, zero - 2))
    except ValueError as error:
        raise ConfigError(Problem("method.loss", str(error))) from error


@final
class DPO(Preference):
    """Direct preference optimisation (arXiv:2305.18290) and its variants, against the policy that entered the stage.

    reference: adapters (the policy with its adapters off), copy (a second, frozen model), or auto: adapters where the policy has them.
    """

    def __init__(
        self, recipe: Recipe, *, loss: PairLoss, sft_weight: float = 0.0, reference: Literal["auto", "adapters", "copy"] = "auto"
    ) -> None:
        super().__init__(recipe, loss=loss, sft_weight=sft_weight)
        self.reference_kind = reference
        self.reference: Reference | None = None

    def configure_model(self) -> None:
        super().configure_model()
        if self.reference is None:
            off = self.reference_kind == "adapters" or (self.reference_kind == "auto" and self.model.base_with_adapters_off)
            self.reference = AdaptersOff(self.model) if off else FrozenCopy(self.recipe.policy())

    def reference_logps(self, tree: TokenTree) -> Tensor | None:
        if self.reference is None:
            raise RuntimeError("the reference exists after configure_model")
        return self.reference(tree)


@final
class ReferenceFree(Preference):
    """Pair losses on the policy's own log-probabilities: SimPO (arXiv:2405.14734), CPO (arXiv:2401.08417), ORPO (arXiv:2403.07691)."""

    def reference_logps(self, tree: TokenTree) -> Tensor | None:
        return None
