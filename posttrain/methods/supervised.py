"""Learning from given targets: supervised fine-tuning and pretraining."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar, final

from torch import Tensor

from posttrain.functional.supervised import SLOPES
from posttrain.functional.supervised import label_smoothing as smoothed
from posttrain.functional.supervised import z_loss as z_penalty
from posttrain.methods.base import Method
from posttrain.methods.parts.recipe import Recipe
from posttrain.types import TokenTree

Loss = Callable[[Tensor, Tensor, float], tuple[Tensor, dict[str, Tensor]]]


class Supervised(Method, ABC):
    """Loss on the weighted targets of every example.

    loss: from posttrain.functional.supervised. label_smoothing: share of the uniform distribution in the targets, [0, 1).
    z_loss: coefficient of the squared log-partition. neftune_alpha: magnitude of NEFTune's embedding noise, 0 for none.
    """

    loss_inputs: ClassVar[tuple[str, ...]] = ("logps", "weight", "denominator")
    per_token: ClassVar[bool] = True

    def __init__(
        self, recipe: Recipe, *, loss: Loss, label_smoothing: float = 0.0, z_loss: float = 0.0, neftune_alpha: float = 0.0
    ) -> None:
        super().__init__(recipe)
        self.loss = loss
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.neftune_alpha = neftune_alpha

    @property
    def knows_slopes(self) -> bool:
        return self._slopes is not None

    @property
    def _slopes(self) -> Callable[[Tensor], Tensor] | None:
        plain = not self.label_smoothing and not self.z_loss
        return SLOPES.get(self.loss.func if isinstance(self.loss, partial) else self.loss) if plain else None

    def loss_of(self, tree: TokenTree) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor]]:
        weight, denominator = tree.weight, tree.share.weight
        slopes = None if self._slopes is None else self._slopes(weight)
        stats, aux = self.model(tree, mean_logps=self.label_smoothing > 0, noise=self.neftune_alpha, slopes=slopes)
        loss, metrics = self.loss(stats.logps, weight, denominator)
        if stats.mean_logps is not None:
            loss = smoothed(loss, stats.mean_logps, weight, denominator, epsilon=self.label_smoothing)
        if self.z_loss and stats.lse is not None:
            penalty = z_penalty(stats.lse, weight, denominator)
            metrics = {**metrics, "z_loss": penalty}
            loss = loss + self.z_loss * penalty
        return loss, aux, metrics


@final
class SFT(Supervised):
    """Supervised fine-tuning on the assistant turns of conversations."""

    data_kind: ClassVar[str] = "conversation"


@final
class Pretrain(Supervised):
    """Language modelling on every token of plain documents."""

    data_kind: ClassVar[str] = "text"
