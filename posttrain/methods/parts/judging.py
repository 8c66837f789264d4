"""What all methods share that judge whole answers by a head on their last token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from posttrain.errors import ConfigError, Problem
from posttrain.functional.reward import rated
from posttrain.methods.base import Method, Recipe
from posttrain.models.artifact import ArtifactRecord
from posttrain.models.heads import RewardHead
from posttrain.models.loading import seeded
from posttrain.models.reward import freeze_output, hidden_size, judge_states, probe_head
from posttrain.models.reward_artifact import check_reward_artifact, save_reward_artifact
from posttrain.types import Judged, Rated, TokenTree

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
        self._try(probe_head(head, self.attributes))

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

    def configure_model(self) -> None:
        super().configure_model()
        if self.head is None:
            with seeded(self.recipe.seed):
                self.head = self.make_head(hidden_size(self.model), self.attributes)
            check_reward_artifact(self.model.causal_lm, self.head)
            freeze_output(self.model)

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
        return save_reward_artifact(self.model.model, self.head, tokenizer, folder, record=record)
