"""Process reward models: learning which step of a worked answer is the first to go wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from posttrain.functional.reward import step_loss
from posttrain.functional.steps import step_metrics, step_sums
from posttrain.methods.base import Method
from posttrain.methods.parts.recipe import Recipe
from posttrain.models.artifact import ArtifactRecord
from posttrain.models.classifiers import STEPS, check_classifier
from posttrain.models.loading import seeded
from posttrain.models.reward import freeze_output, hidden_size, logits_at
from posttrain.models.reward_artifact import save_step_artifact
from posttrain.types import TokenTree


@final
class ProcessReward(Method):
    """A backbone without its output head, and a linear map to two logits, wrong and right, at each step's last token.

    The loss is the cross-entropy of the labelled steps (arXiv:2305.20050, section 2.6; arXiv:2312.08935, eq. 2), its mean over the steps
    of an optimizer step.
    """

    data_kind: ClassVar[str] = "steps"
    language_model: ClassVar[bool] = False
    report: ClassVar[str | None] = "steps"

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.head: nn.Linear | None = None

    def build_beside(self) -> None:
        super().build_beside()
        self.head = self._new_head(hidden_size(self.model))
        check_classifier(self.model.causal_lm, STEPS, self.head)
        freeze_output(self.model)

    def _new_head(self, width: int) -> nn.Linear:
        with seeded(self.recipe.seed):
            return nn.Linear(width, len(STEPS.labels))

    def modules_beside(self, width: int) -> list[nn.Module]:
        return [self._new_head(width)]

    def judge(self, tree: TokenTree) -> tuple[Tensor, Tensor | None]:
        """Logits of wrong and right [M, 2] of a tree's steps, and the auxiliary loss of a mixture of experts."""
        if self.head is None:
            raise RuntimeError("the head exists after configure_model")
        hidden, aux = self.model.hidden(tree)
        return logits_at(self.head, hidden, tree.mark), aux

    def loss_of(self, tree: TokenTree) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor]]:
        logits, aux = self.judge(tree)
        right = (logits.detach().argmax(1) == tree.value).sum()
        return step_loss(logits, tree.value).sum() / tree.share.weight, aux, {"accuracy": right / tree.share.weight}

    @torch.no_grad()
    def validation_parts(self, tree: TokenTree) -> Mapping[str, Tensor]:
        logits, _ = self.judge(tree)
        trace = tree.example.to(tree.mark.device)[tree.mark_segment]
        return {"loss": step_loss(logits, tree.value).sum(), **step_sums(logits, tree.value, trace)}

    def validation_summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"loss": sums["loss"] / sums["steps"], **step_metrics(sums)}

    @torch.no_grad()
    def outcomes(self, tree: TokenTree) -> Mapping[str, Tensor]:
        logits, _ = self.judge(tree)
        return {"right": logits.softmax(1)[:, 1], "label": tree.value}

    def hand_on(self, tokenizer: Any, folder: Path, *, record: ArtifactRecord) -> Path:
        assert self.head is not None
        return save_step_artifact(self.model.model, self.head, tokenizer, folder, record=record, rendering=self.recipe.rendering)
