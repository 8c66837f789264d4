"""Reward models: learning what people prefer, from pairs of answers or from ratings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from posttrain.errors import Problem
from posttrain.functional.calibration import calibration_error, moments, named, pearson, reliability_sums, unnamed
from posttrain.functional.reward import pair_sums
from posttrain.methods.parts.judging import HeadFactory, Reward
from posttrain.methods.parts.recipe import Recipe
from posttrain.types import Judged, Rated, TokenTree

PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
RatingLoss = Callable[[Judged, Tensor], Tensor]


@final
class RewardModel(Reward):
    """Pairs of answers, one preferred: the mean over the pairs of a step.

    loss: of rewards and the gap of the ratings, from posttrain.functional.reward (bradley_terry).
    """

    loss_inputs: ClassVar[tuple[str, ...]] = ("chosen", "rejected", "gap")
    data_kind: ClassVar[str] = "rated_pairs"
    report: ClassVar[str | None] = "pairs"
    answers: ClassVar[int] = 2

    def __init__(self, recipe: Recipe, *, loss: PairLoss, head: HeadFactory, attributes: list[str]) -> None:
        self.loss = loss
        super().__init__(recipe, head=head, attributes=attributes)

    def unused(self, values: np.ndarray) -> Iterator[Problem]:
        yield from super().unused(values)
        scores = self.facts(values)[:, 1].reshape(-1, 2)
        if self._has_margin and not np.nan_to_num(scores[:, 0] - scores[:, 1]).any():
            message = "the margin has no effect: in no pair are both answers rated, and differently"
            yield Problem("method.loss.margin_scale", message, "set it to 0, or give rows score_chosen and score_rejected, or margin")

    @property
    def _has_margin(self) -> bool:
        """Whether the loss looks at the gap of the ratings."""
        zero = torch.zeros(1)
        return not torch.equal(self.loss(zero, zero, zero), self.loss(zero, zero, zero + 1))

    def losses(self, judged: Judged, known: Rated) -> Tensor:
        reward, score = judged.reward.view(-1, 2), known.score.view(-1, 2)
        return self.loss(reward[:, 0], reward[:, 1], score[:, 0] - score[:, 1])

    def loss_of(self, tree: TokenTree) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor]]:
        judged, known, aux = self.judge(tree)
        parts = {name: value / tree.share.examples for name, value in self._sums_of(judged, known).items()}
        return parts.pop("loss"), aux, parts

    def _sums_of(self, judged: Judged, known: Rated) -> dict[str, Tensor]:
        return {"loss": self.all_losses(judged, known).sum(), **pair_sums(judged.reward.detach())}

    @torch.no_grad()
    def validation_parts(self, tree: TokenTree) -> Mapping[str, Tensor]:
        judged, known, _ = self.judge(tree)
        margin = -judged.reward.view(-1, 2).diff(dim=1)[:, 0]
        return {**self._sums_of(judged, known), "pairs": torch.tensor(float(len(margin))), **named("bin", reliability_sums(margin))}

    def validation_summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        means = {name: value / sums["pairs"] for name, value in sums.items() if name != "pairs" and not name.startswith("bin")}
        return {**means, "ece": calibration_error(unnamed("bin", sums))}

    @torch.no_grad()
    def outcomes(self, tree: TokenTree) -> Mapping[str, Tensor]:
        judged, known, _ = self.judge(tree)
        (chosen, rejected), (long, short) = judged.reward.view(-1, 2).unbind(1), known.length.view(-1, 2).unbind(1)
        return {"chosen": chosen, "rejected": rejected, "chosen_length": long, "rejected_length": short}


@final
class RatingModel(Reward):
    """Rated answers, one or more to a prompt: the mean over the answers of a step, to which one that is rated without a score adds what
    the head learns of its attributes.

    loss: of what the head says and the score, from posttrain.functional.reward (squared, huber, pinball).
    """

    loss_inputs: ClassVar[tuple[str, ...]] = ("judged", "score")
    data_kind: ClassVar[str] = "rated"
    report: ClassVar[str | None] = "ratings"
    answers: ClassVar[int] = 1

    def __init__(self, recipe: Recipe, *, loss: RatingLoss, head: HeadFactory, attributes: list[str]) -> None:
        self.loss = loss
        super().__init__(recipe, head=head, attributes=attributes)

    def unused(self, values: np.ndarray) -> Iterator[Problem]:
        yield from super().unused(values)
        unscored = np.isnan(self.facts(values)[:, 1])
        if unscored.all():
            yield Problem(
                "method.loss", "no answer has a score, and scores are what it learns", "rows with a score, or method=reward_model"
            )
        elif unscored.any() and not self.learns_ratings:
            message = f"{np.count_nonzero(unscored)} of {len(unscored)} answers have ratings of attributes and no score, and this head"
            yield Problem("method.head", f"{message} learns scores alone", "method/head=branch, or leave them out with data.attributes=[]")

    def losses(self, judged: Judged, known: Rated) -> Tensor:
        return self.loss(judged, known.score)

    def loss_of(self, tree: TokenTree) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor]]:
        judged, known, aux = self.judge(tree)
        return self.all_losses(judged, known).sum() / tree.share.weight, aux, {}

    @torch.no_grad()
    def validation_parts(self, tree: TokenTree) -> Mapping[str, Tensor]:
        judged, known, _ = self.judge(tree)
        loss = self.all_losses(judged, known).sum()
        answers = torch.tensor(float(len(known.score)))
        scored = ~known.score.isnan()
        return {"loss": loss, "answers": answers, **named("moment", moments(judged.reward[scored], known.score[scored]))}

    def validation_summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"loss": sums["loss"] / sums["answers"], "correlation": pearson(unnamed("moment", sums))}

    @torch.no_grad()
    def outcomes(self, tree: TokenTree) -> Mapping[str, Tensor]:
        judged, known, _ = self.judge(tree)
        return {"reward": judged.reward, "score": known.score, "length": known.length}
