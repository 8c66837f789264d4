"""Learning from pairs of the policy's own answers: online DPO."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor

from posttrain.errors import ConfigError, Problem
from posttrain.functional.coefficients import constant
from posttrain.functional.kl import penalty
from posttrain.functional.pairing import Pairing, paired
from posttrain.methods.parts.online import Online, with_columns
from posttrain.methods.parts.paired import PairLoss, Preference
from posttrain.methods.parts.recipe import Recipe
from posttrain.types import Arrangement, Part, Rollout, TokenizedExample, TokenTree


@final
class OnlineDPO(Online, Preference):
    """Pair losses on answers that the policy samples and the rewards rank (OAIF, arXiv:2402.04792).

    A rollout's answers to a prompt make pairs, see `posttrain.functional.pairing`; the loss is the mean over the pairs of a step, as DPO's
    is. pairs: best_worst, all, or random_two. margin: rewards that differ by this or less make no pair. The log-probabilities are those of
    temperature 1, whatever the answers were sampled at: DPO's optimum is stated for the policy itself. Further keys: see
    `posttrain.methods.parts.paired.Preference` and `posttrain.methods.parts.online.Online`.
    """

    loss_inputs: ClassVar[tuple[str, ...]] = ("pairs",)

    def __init__(
        self,
        recipe: Recipe,
        *,
        loss: PairLoss,
        pairs: Literal["best_worst", "all", "random_two"] = "best_worst",
        margin: float = 0.0,
        beta_schedule: Callable[[float], float] = constant,
        sft_weight: float = 0.0,
        tail_weight: float = 1.0,
        wpo: bool = False,
        minibatches: int = 1,
        rollout_epochs: int = 1,
        longest: int = 256,
        selection: Literal["keep", "drop", "resample"] = "keep",
        selection_tries: int = 4,
        difficulty_low: float = 0.0,
        difficulty_high: float = 1.0,
        mask_truncated: bool = False,
        reference: Literal["auto", "adapters", "copy"] = "auto",
        reference_update_every: int | None = None,
        reference_update_mix: float = 0.6,
    ) -> None:
        super().__init__(
            recipe, minibatches=minibatches, rollout_epochs=rollout_epochs, longest=longest, selection=selection,
            selection_tries=selection_tries, mask_truncated=mask_truncated,
            difficulty_low=difficulty_low, difficulty_high=difficulty_high, reference=reference,
            reference_update_every=reference_update_every, reference_update_mix=reference_update_mix,
            loss=loss, beta_schedule=beta_schedule, sft_weight=sft_weight, tail_weight=tail_weight, wpo=wpo,
        )  # fmt: skip
        self.pairs, self.margin = pairs, margin
        if pairs == "all" and tail_weight != 1.0:
            message = "what lies behind the shorter answer differs between the pairs that an answer is in"
            raise ConfigError(Problem("method.tail_weight", message, "method.pairs=best_worst, or method.tail_weight=1"))

    @property
    def referenced(self) -> bool:
        return True

    @property
    def keeps_old(self) -> bool:
        return False  # no ratio to the policy that sampled

    @property
    def forward_passes(self) -> float:
        return float(self._ahead)

    def informative(self, rollout: Rollout) -> np.ndarray:
        """bool [P]: groups that make a pair; with random_two, whose two answers do, whatever the others are."""
        return np.array([bool(pairs) for pairs in self._paired(rollout).pairs])

    def _paired(self, rollout: Rollout) -> Pairing:
        """The pairs of the kept answers. What is drawn at random is the group's own, wherever in a rollout it lies."""
        rewards = rollout.rewards.total.masked_fill(torch.from_numpy(~rollout.kept), torch.nan)
        draws = [np.random.default_rng([self.recipe.seed, group.place]).random(rollout.kept.shape[1]) for group in rollout.groups]
        return paired(rewards, torch.from_numpy(np.stack(draws)), rule=self.pairs, margin=self.margin)

    def arrange(self, rollout: Rollout) -> Arrangement:
        found = self._paired(rollout)
        counts = {"pairs/made": sum(map(len, found.pairs)), "pairs/tied": found.tied, "pairs/left_out": found.left_out}
        return Arrangement(found.pairs, {name: float(count) for name, count in counts.items()})

    def annotate(self, rollout: Rollout, parts: Sequence[Part]) -> list[TokenizedExample]:
        return with_columns(parts, self.read(parts))

    def reference_logps(self, tree: TokenTree) -> Tensor:
        """As they were computed with the rollout."""
        return torch.zeros_like(tree.weight) if tree.reference is None else tree.reference

    def loss_of(self, tree: TokenTree) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor]]:
        known = self.reference_logps(tree)
        pairs, stats, aux = self._read(tree, known)
        losses = self._losses(pairs) if self._gradients is None else self._gradients.losses(pairs, self.number)
        count = max(tree.share.sequences // 2, 1)  # a step without a pair has a loss of 0
        parts = {name: value / count for name, value in self._totals(losses, pairs, stats, known, tree).items()}
        divergence = penalty(stats.logps.detach(), known, None, estimator="k3")
        parts["kl"] = (divergence * tree.weight).sum() / max(tree.share.weight, 1.0)
        parts["pairs"] = torch.tensor(float(len(pairs.chosen)), device=self.device)
        return parts.pop("loss"), aux, parts

    def after_step(self, sums: Mapping[str, float]) -> None:
        if self.running is not None and sums["pairs"]:
            self.running.add(sums["ratio"], count=2 * int(sums["pairs"]))
        self.watch.look(self.global_step, sums, leads=self.global_rank == 0)
        self.look_for_alarms(sums)
