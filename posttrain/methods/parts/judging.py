"""What all methods share that judge whole answers by a head on their last token."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from posttrain.errors import ConfigError, Problem
from posttrain.functional.reward import rated
from posttrain.methods.base import Method
from posttrain.methods.parts.recipe import Recipe
from posttrain.models.artifact import ArtifactRecord
from posttrain.models.heads import RewardHead
from posttrain.models.loading import seeded
from posttrain.models.reward import freeze_output, hidden_size, judge_states, probe_head
from posttrain.models.reward_artifact import check_reward_artifact, save_reward_artifact
from posttrain.types import Judged, Rated, TokenTree

log = logging.getLogger(__name__)

HeadFactory = Callable[[int, Sequence[str]], RewardHead]


class Reward(Method, ABC):
    """A backbone without its output head, and a reward head on the state at each answer's last token.

    head: from posttrain.models.heads. attributes: qualities that the data may rate, see `data.attributes`.
    """

    language_model: ClassVar[bool] = False
    answers: ClassVar[int]  # that share a loss

    def __init__(self, recipe: Recipe, *, head: HeadFactory, attributes: list[str]) -> None:
        super().__init__(recipe)
        self.make_head = head
        self.attributes = tuple(attributes)
        self.head: RewardHead | None = None
        small = probe_head(head, self.attributes)
        self.learns_ratings = small.learns_ratings
        self._try(small)

    @abstractmethod
    def losses(self, judged: Judged, known: Rated) -> Tensor:
        """The loss of each pair, or of each answer, before what the head adds."""

    def _try(self, head: RewardHead) -> None:
        """Let head and loss object to their options before a model is built. Raises ConfigError."""
        nothing = torch.zeros(2)
        try:
            self.losses(head(torch.zeros(2, head.hidden_size)), Rated(nothing.long(), nothing, nothing, nothing[:, None]))
        except ValueError as error:
            raise ConfigError(Problem("method.loss", str(error))) from error

    def build_beside(self) -> None:
        super().build_beside()
        self.head = self._new_head(hidden_size(self.model))
        check_reward_artifact(self.model.causal_lm, self.head)
        freeze_output(self.model)

    def _new_head(self, width: int) -> RewardHead:
        with seeded(self.recipe.seed):
            return self.make_head(width, self.attributes)

    def modules_beside(self, width: int) -> list[nn.Module]:
        return [self._new_head(width)]

    def unused(self, values: np.ndarray) -> Iterator[Problem]:
        """Attributes that the head wants rated and no row rates."""
        known = ~np.isnan(self.facts(values)[:, 2:]).all(0)
        unrated = ", ".join(name for name, rated in zip(self.attributes, known, strict=True) if not rated)
        if self.learns_ratings and unrated and known.any():
            log.info("no row rates %s: learnt from the rest of the loss alone", unrated)
        if self.learns_ratings and not known.any():
            hint = "name what the rows rate, or set method.head.attribute_weight=0 to learn them from the rest of the loss alone"
            yield Problem("data.attributes", f"no row rates any of them: {unrated}", hint)

    def facts(self, values: np.ndarray) -> np.ndarray:
        """What is known of each answer, [A, 2 + K]: its length, its score, its attributes; NaN where unknown."""
        return values.reshape(-1, 2 + len(self.attributes))

    def judge(self, tree: TokenTree) -> tuple[Judged, Rated, Tensor | None]:
        """What the head says of a tree's answers, what is known of them, and the auxiliary loss of a mixture of experts."""
        if self.head is None:
            raise RuntimeError("the head exists after configure_model")
        known = rated(tree, attributes=len(self.attributes))
        hidden, aux = self.model.hidden(tree)
        return judge_states(self.head, hidden, known.place), known, aux

    def all_losses(self, judged: Judged, known: Rated) -> Tensor:
        """The loss of each pair or answer, with what the head adds to it."""
        assert self.head is not None
        with torch.autocast(self.device.type, enabled=False):  # on a GPU autocast forbids the attributes' cross-entropy
            losses = self.losses(judged, known)
            extra = self.head.auxiliary(judged, known.attributes)
            return losses if extra is None else losses + extra.view(-1, self.answers).mean(-1)

    def hand_on(self, tokenizer: Any, folder: Path, *, record: ArtifactRecord) -> Path:
        assert self.head is not None
        return save_reward_artifact(self.model.model, self.head, tokenizer, folder, record=record, rendering=self.recipe.rendering)
