"""What all methods share that learn from pairs of answers by their log-probabilities."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.errors import ConfigError, Problem
from posttrain.functional import pairs as on_pairs
from posttrain.functional.coefficients import constant
from posttrain.functional.preference import BASELINE, REFERENCE_FREE, WHOLE_STEP, parts_of
from posttrain.methods.base import Method
from posttrain.methods.parts.health import DriftWatch
from posttrain.methods.parts.recipe import Recipe
from posttrain.methods.parts.running import RunningMean
from posttrain.methods.parts.whole_step import StepGradients, step_gradients
from posttrain.models.reference import drops_out, inference
from posttrain.types import PairLogps, TokenStats, TokenTree

PairLoss = Callable[..., Tensor]
ACCURACY = "rewards/accuracy"


class Preference(Method, ABC):
    """Mean of a pair loss over the pairs of a step.

    loss: from posttrain.functional.preference; its `beta` also scales the rewards that are reported. beta_schedule: progress of the run
    in [0, 1] -> factor on beta. sft_weight: coefficient of the chosen answers' negative log-likelihood per token, averaged over pairs
    (RPO, arXiv:2404.19733, eq. 1). tail_weight: of the tokens by which an answer is longer than the other one (LD-DPO's alpha,
    arXiv:2409.06411). wpo: weigh pairs by how likely the policy is to write them (WPO, arXiv:2406.11827).
    """

    loss_inputs: ClassVar[tuple[str, ...]] = ("pairs",)
    data_kind: ClassVar[str] = "preference"
    has_reference: ClassVar[bool] = True

    def __init__(
        self,
        recipe: Recipe,
        *,
        loss: PairLoss,
        beta_schedule: Callable[[float], float] = constant,
        sft_weight: float = 0.0,
        tail_weight: float = 1.0,
        wpo: bool = False,
    ) -> None:
        super().__init__(recipe)
        self.loss, self.beta_schedule = loss, beta_schedule
        self.sft_weight, self.tail_weight, self.wpo = sft_weight, tail_weight, wpo
        self.beta = float(inspect.signature(loss).parameters["beta"].default)
        self.whole_step = bool(parts_of(loss) & WHOLE_STEP)
        self.running = RunningMean() if parts_of(loss) & BASELINE else None
        self.watch = self.kept["drift"] = DriftWatch()
        self._gradients: StepGradients | None = None
        self._known: list[Tensor | None] = []
        _try(loss, reference=self.has_reference)
        if self.whole_step and wpo:
            raise ConfigError(Problem("method.wpo", "weights single pairs, and this loss compares sorted ones", "wpo=false"))

    @abstractmethod
    def reference_logps(self, tree: TokenTree) -> Tensor | None:
        """Log-probabilities [N] of the tree's targets under the reference; None without one."""

    def before_step(self, step: int) -> None:
        self._gradients, self._known = None, []
        if self._ahead:
            with torch.no_grad(), inference(self.model):
                read = [(known := self.reference_logps(tree), self._read(tree, known)[0]) for tree in self.step_trees(step)]
            self._known, mine = map(list, zip(*read, strict=True))
            self._gradients = step_gradients(self._losses, mine)

    @property
    def forward_passes(self) -> float:
        return float(self._ahead)

    @property
    def _ahead(self) -> bool:
        """Whether the step is read before its micro-batches: where it has several, and under dropout, which that reading leaves out."""
        return self.whole_step and self.steps is not None and (self.steps.parts > 1 or drops_out(self.model))

    def loss_of(self, tree: TokenTree) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor]]:
        known = self._known[self.number] if self._known else self.reference_logps(tree)
        pairs, stats, aux = self._read(tree, known)
        losses = self._losses(pairs) if self._gradients is None else self._gradients.losses(pairs, self.number)
        parts = {name: value / tree.share.examples for name, value in self._totals(losses, pairs, stats, known, tree).items()}
        return parts.pop("loss"), aux, parts

    def after_step(self, sums: Mapping[str, float]) -> None:
        if self.running is not None:
            self.running.add(sums["ratio"], count=2 * self.examples)
        self.watch.look(self.global_step, sums, leads=self.global_rank == 0)

    def _read(self, tree: TokenTree, known: Tensor | None) -> tuple[PairLogps, TokenStats, Tensor | None]:
        """The tree's pairs, the statistics of its targets, the auxiliary loss. known: the reference's log-probabilities [N]."""
        stats, aux = self.model(tree, collision=self.wpo)
        baseline = None if self.running is None else self.running.mean
        return on_pairs.pair_logps(stats.logps, known, tree, tail=self.tail_weight, baseline=baseline), stats, aux

    def _current_beta(self) -> float:
        return self.beta * self.beta_schedule(self.progress)

    def _losses(self, pairs: PairLogps) -> Tensor:
        """One loss a pair, [P]."""
        return self.loss(pairs, beta=self._current_beta())

    def _totals(self, losses: Tensor, pairs: PairLogps, stats: TokenStats, known: Tensor | None, tree: TokenTree) -> dict[str, Tensor]:
        """Sums over the pairs of a tree: of the loss and of what is reported."""
        whole, sums = self._by_pair(losses, pairs, stats, known, tree)
        return {"loss": whole.sum(), **sums}

    def _by_pair(
        self, losses: Tensor, pairs: PairLogps, stats: TokenStats, known: Tensor | None, tree: TokenTree
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The whole loss of each pair [P], and sums of what else is reported."""
        sums: dict[str, Tensor] = {}
        if stats.log_collision is not None:
            weights = on_pairs.likely_weights(stats.logps, stats.log_collision, tree)
            losses, sums["wpo/weight"] = losses * weights, weights.sum()
        if self.sft_weight:
            nll = -on_pairs.answer_sums(stats.logps, tree).view(-1, 2)[:, 0] / pairs.chosen_length
            losses, sums["nll"] = losses + self.sft_weight * nll, nll.detach().sum()
        if known is not None:
            sums |= on_pairs.drift(stats.logps, known, tree)
        if self.running is not None:
            sums["ratio"] = on_pairs.mean_ratio(pairs).sum()
        return losses, {**on_pairs.reported(pairs, beta=self._current_beta()), **sums}

    @torch.no_grad()
    def validation_parts(self, tree: TokenTree) -> Mapping[str, Tensor]:
        known = self.reference_logps(tree)
        pairs, stats, _ = self._read(tree, known)
        # a loss on sorted pairs would depend on how validation is split: there each pair counts by itself
        singles = on_pairs.one_by_one(pairs) if self.whole_step else [pairs]
        losses = torch.cat([self._losses(part) for part in singles]) if singles else pairs.chosen
        whole, sums = self._by_pair(losses, pairs, stats, known, tree)
        right = on_pairs.told_apart(pairs, beta=self._current_beta())
        return {"loss": whole, **sums, ACCURACY: right, "pairs": torch.ones_like(whole)}  # an example is a pair

    def validation_summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {name: value / sums["pairs"] for name, value in sums.items() if name != "pairs"}

    def validation_scores(self, rows: Mapping[str, Tensor]) -> Mapping[str, tuple[Tensor, Tensor]]:
        return {name: (rows[name], rows["pairs"]) for name in ("loss", ACCURACY)}


def _try(loss: PairLoss, *, reference: bool) -> None:
    """Let a loss object to its options before a model is built. Raises ConfigError."""
    zero = torch.zeros(1)
    known = (zero - 1, zero - 2) if reference else ()
    try:
        loss(PairLogps(zero - 1, zero - 2, zero + 1, zero + 1, *known))
    except (ValueError, TypeError) as error:
        raise ConfigError(Problem("method.loss", str(error))) from error
    if reference and parts_of(loss) <= REFERENCE_FREE:
        raise ConfigError(Problem("method.loss", "this loss has no use for a reference policy", "method=simpo, method=cpo or method=orpo"))
