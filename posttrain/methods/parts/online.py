"""What the methods that learn from their own answers share."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from posttrain.errors import ConfigError, Problem
from posttrain.functional.advantages import informative
from posttrain.functional.kl import penalty
from posttrain.methods.parts.alarms import RewardWatch
from posttrain.methods.parts.passes import Columns, columns_of
from posttrain.methods.parts.recipe import Recipe
from posttrain.methods.parts.referenced import Referenced
from posttrain.models.reference import ReferencePolicy, drops_out, inference, without_dropout
from posttrain.types import Arrangement, Part, PolicyTokens, Rollout, TokenizedExample, TokenTree

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class KL:
    """The pull towards the reference policy. coef: its coefficient, 0 for none. estimator: k1, k2 or k3 of each token (J. Schulman, 2020).

    place: in the loss, or taken off the reward before advantages. unbiased: in the loss, weigh the estimate by pi / pi_old, which makes its
    gradient right for k1 and k3 (see posttrain.functional.kl). clamp: largest |log pi - log pi_ref| that counts; None for no bound.
    """

    coef: float = 0.0
    estimator: Literal["k1", "k2", "k3"] = "k3"
    place: Literal["loss", "reward"] = "loss"
    unbiased: bool = False
    clamp: float | None = None

    def of(self, logps: Tensor, reference: Tensor, ratio: Tensor | None = None) -> Tensor:
        """The estimate of each token [N], nats."""
        return penalty(logps, reference, ratio if self.unbiased else None, estimator=self.estimator, clamp=self.clamp)


NO_PULL = KL()


class Online(Referenced, ABC):
    """A rollout samples `rollout.group_size` answers to minibatches * global_batch prompts; rollout_epochs passes over them follow.

    temperature, longest: of the rollout, which the loss must know. selection: what becomes of groups whose rewards are all alike: keep,
    drop, or resample (ask further prompts, in at most selection_tries rounds; DAPO, arXiv:2503.14476, section 3.2). difficulty_low,
    difficulty_high: prompts whose share of answers with a reward above 0 was outside these when they were last asked are passed over, see
    `posttrain.rollout.curriculum`. mask_truncated: leave answers that were cut off out of the loss (section 3.4); the others are compared
    with them all the same. reference, reference_update_every, reference_update_mix: see `posttrain.models.reference.ReferencePolicy`; there
    is one only where kl.coef is above 0. The policy trains without dropout: its ratios are to be its own and not those of the activations
    left out.
    """

    online: ClassVar[bool] = True
    data_kind: ClassVar[str] = "prompt"

    def __init__(
        self,
        recipe: Recipe,
        *,
        kl: KL = NO_PULL,
        minibatches: int = 1,
        rollout_epochs: int = 1,
        temperature: float = 1.0,
        longest: int = 256,
        selection: Literal["keep", "drop", "resample"] = "keep",
        selection_tries: int = 4,
        difficulty_low: float = 0.0,
        difficulty_high: float = 1.0,
        mask_truncated: bool = False,
        reference: Literal["auto", "adapters", "copy"] = "auto",
        reference_update_every: int | None = None,
        reference_update_mix: float = 0.6,
        **family: Any,
    ) -> None:
        super().__init__(recipe, **family)  # of the other base that a method may have
        self.kl = kl
        self.minibatches, self.rollout_epochs = minibatches, rollout_epochs
        self.temperature, self.longest = temperature, longest
        self.selection, self.selection_tries, self.mask_truncated = selection, selection_tries, mask_truncated
        self.difficulty_low, self.difficulty_high = difficulty_low, difficulty_high
        if difficulty_low > difficulty_high:
            raise ConfigError(Problem("method.difficulty_low", "is above difficulty_high, so no prompt would be asked twice", "swap them"))
        self.reference = ReferencePolicy(reference, update_every=reference_update_every, update_mix=reference_update_mix)
        self.max_tokens = 0  # of a pass between steps; set with `steps`
        self.alarms = self.kept["alarms"] = RewardWatch()

    @property
    def referenced(self) -> bool:
        """Whether anything asks the reference policy."""
        return self.kl.coef > 0

    def build_beside(self) -> None:
        super().build_beside()
        without_dropout(self.model)
        if drops_out(self.model) and self.global_rank == 0:
            log.warning("the model has dropout, which online methods leave out: ratios and divergences are those of the whole policy")

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if mode and self.policy is not None:
            without_dropout(self.policy)
        return self

    def arrange(self, rollout: Rollout) -> Arrangement:
        """Which of the kept answers the loss reads together: here each is read by itself."""
        return Arrangement()

    def copies(self, *, adapters_off_restore: bool) -> int:
        return super().copies(adapters_off_restore=adapters_off_restore) if self.referenced else 0

    def beside(self, rollout: Rollout) -> np.ndarray:
        """bool [P, G]: answers that are not learnt from, and that `annotate` is given all the same: none."""
        return np.zeros_like(rollout.kept)

    @abstractmethod
    def annotate(self, rollout: Rollout, parts: Sequence[Part]) -> list[TokenizedExample]:
        """The parts' trees with the columns that the loss reads."""

    def choose(self, rollout: Rollout) -> np.ndarray:
        """bool [P, G]: the answers to learn from."""
        ended = [[completion.finish == "stop" for completion in group.completions] for group in rollout.groups]
        return np.array(ended) if self.mask_truncated else np.ones_like(rollout.kept)

    def informative(self, rollout: Rollout) -> np.ndarray:
        """bool [P]: groups of which something is kept and whose rewards are not all alike."""
        return np.asarray(informative(rollout.rewards).numpy()) & rollout.kept.any(1)

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Around what is computed between steps: no gradients, no dropout, the precision of training."""
        with torch.no_grad(), inference(self.model), self.trainer.precision_plugin.forward_context():
            yield

    def read(self, parts: Sequence[Part]) -> list[Columns]:
        """The policy's log-probabilities of the sampled tokens as `old`, and the reference's as `reference`, as far as they are needed.

        A rollout begins here, before its first step does: a reference that is to move before that step moves now.
        """

        def passes(tree: TokenTree) -> Mapping[str, Tensor]:
            found = {"reference": self.reference(tree, temperature=self.temperature)} if self.referenced else {}
            return {**self.read_policy(tree), **found}

        if not (parts and self.passes_between):
            return [{} for _ in parts]
        self.advance(self.global_step)
        with self.sharding.passes(self):
            return columns_of([part.tree for part in parts], passes, max_tokens=self.max_tokens, device=self.device)

    def read_policy(self, tree: TokenTree) -> Mapping[str, Tensor]:
        """What the policy says of a tree's targets before it learns from them: its log-probabilities, if they are needed."""
        return {"old": self.model(tree, temperature=self.temperature)[0].logps} if self.keeps_old else {}

    @property
    def keeps_old(self) -> bool:
        """Whether the policy that sampled must be read: with one step a rollout, that step's own log-probabilities are the old ones."""
        return self.steps_per_rollout > 1 or (self.referenced and self.kl.place == "reward")

    @property
    def steps_per_rollout(self) -> int:
        return self.minibatches * self.rollout_epochs

    def for_loss(self, columns: Columns) -> Columns:
        """Those that the loss reads: with one step a rollout its ratio is 1, which `old` from another pass would miss by rounding."""
        return {name: value for name, value in columns.items() if name != "old" or self.steps_per_rollout > 1}

    @property
    def passes_between(self) -> float:
        """Forward passes over every sampled answer between steps."""
        return float(self.keeps_old) + float(self.referenced)

    @property
    def forward_passes(self) -> float:
        return 0.0  # those between steps are counted with the rollout

    def look_for_alarms(self, sums: Mapping[str, float]) -> None:
        """Tell what goes wrong. sums: the step's metrics; with the first step of a rollout what that showed is looked at too."""
        notes = {} if self.steps is None else self.steps.notes(self.global_step - 1)
        self.alarms.look(self.global_step, {**notes, **sums}, leads=self.global_rank == 0)

    def policy_tokens(self, tree: TokenTree, logps: Tensor) -> PolicyTokens:
        """What a policy loss reads of a tree. logps: [N], with a gradient."""
        sequence = torch.searchsorted(tree.mark_segment, tree.segment)
        return PolicyTokens(
            logps=logps,
            old=column(tree, "old") if "old" in tree.columns else logps.detach(),
            advantages=column(tree, "advantage"),
            weight=tree.weight,
            sequence=sequence,
            lengths=torch.bincount(sequence, minlength=len(tree.mark)),
            step_tokens=max(tree.share.weight, 1.0),  # a step that learns from nothing has a loss of 0
            step_sequences=max(tree.share.sequences, 1),
            longest=self.longest,
        )


def column(tree: TokenTree, name: str) -> Tensor:
    """A column [N]; zeros where the tree stands for no work."""
    return tree.columns[name] if name in tree.columns else torch.zeros_like(tree.weight)


def with_columns(parts: Sequence[Part], columns: Sequence[Columns]) -> list[TokenizedExample]:
    """The parts' trees with further columns; `reference` has its own place."""
    return [
        replace(
            part.tree,
            reference=known.get("reference"),
            columns={**part.tree.columns, **{name: value for name, value in known.items() if name != "reference"}},
        )
        for part, known in zip(parts, columns, strict=True)
    ]


def spread(part: Part, values: Tensor) -> np.ndarray:
    """A number for each answer of each group [P, G] as a column [T] of the part's tree: the same at every token of an answer."""
    chosen = values[part.group].numpy()[list(part.answers)]
    before, *lengths = part.tree.segment_lengths.tolist()
    return np.concatenate([np.zeros(before), np.repeat(chosen, lengths)]).astype(np.float32)
