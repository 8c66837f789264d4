"""What every alignment method shares: a policy, its optimizer, and losses that do not depend on how a step is split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import PreTrainedTokenizerBase

from posttrain.data.tree import to_device
from posttrain.functional.supervised import likelihood_metrics, likelihood_sums
from posttrain.models.artifact import ArtifactRecord, save_artifact
from posttrain.models.policy import PolicyModel
from posttrain.types import TokenTree

NamedParameters = list[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class Recipe:
    """What a method is given to train with.

    policy: builds the model; called once, on every rank, when the strategy is ready. optimizer: named parameters -> optimizer.
    scheduler: (optimizer, max_steps) -> learning-rate scheduler. gradient_clip: largest global gradient norm, None for no clipping.
    seed: of what the method itself draws at random, such as a new head.
    """

    policy: Callable[[], PolicyModel]
    optimizer: Callable[[NamedParameters], Optimizer]
    scheduler: Callable[[Optimizer, int], LRScheduler]
    max_steps: int
    gradient_clip: float | None = 1.0
    seed: int = 0


class Method(LightningModule, ABC):
    """Base of the methods. A leaf states its loss in `loss_of`; the loop is Lightning's automatic optimisation.

    loss_inputs: names of the positional tensors the method hands to its loss. data_kind: which examples it trains on. language_model:
    whether it trains the model's output head, and hands on what can write text. report: the closing report that reads its `outcomes`
    (a name in posttrain.runs.reports); None for none.
    """

    loss_inputs: ClassVar[tuple[str, ...]]
    data_kind: ClassVar[str]
    language_model: ClassVar[bool] = True
    report: ClassVar[str | None] = None

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.policy: PolicyModel | None = None
        self.strict_loading = False  # frozen weights are not in checkpoints; on_load_checkpoint checks the others
        self.grad_norm = float("nan")
        self._sums: dict[str, Tensor] = {}

    @abstractmethod
    def loss_of(self, tree: TokenTree) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor]]:
        """This micro-batch's part of the step's loss, an auxiliary loss to be averaged over micro-batches (or None), and metric parts.

        Parts of a step add up to its value.
        """

    def configure_model(self) -> None:
        if self.policy is None:
            self.policy = self.recipe.policy()

    def training_step(self, tree: TokenTree, batch_idx: int) -> Tensor:
        loss, aux, metrics = self.loss_of(tree)
        parts = {"loss": loss, **metrics}
        total = loss * tree.share.parts  # the loop averages over micro-batches and ranks
        if aux is not None:
            parts["aux_loss"] = aux / tree.share.parts
            total = total + aux
        self._accumulate(parts)
        return total

    def _accumulate(self, parts: Mapping[str, Tensor]) -> None:
        for name, value in parts.items():
            part = value.detach().double()
            self._sums[name] = self._sums[name] + part if name in self._sums else part

    def pop_sums(self) -> dict[str, Tensor]:
        """Sums of this rank's metric parts since the last call, float64 scalars."""
        sums, self._sums = self._sums, {}
        return sums

    @torch.no_grad()
    def validation_parts(self, tree: TokenTree) -> Mapping[str, Tensor]:
        """What this tree adds to the sums that `validation_summary` reads: here those of the targets' likelihood."""
        stats, _ = self.model(tree, correct=True)
        return likelihood_sums(stats.logps, stats.correct, tree.weight)

    def validation_summary(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Validation metrics from the sums over all trees; `loss` is among them."""
        return likelihood_metrics(sums)

    def outcomes(self, tree: TokenTree) -> Mapping[str, Tensor]:
        """Columns of the closing report, a value for each pair, answer or step of a held-out tree."""
        return {}

    def hand_on(self, tokenizer: PreTrainedTokenizerBase, folder: Path, *, record: ArtifactRecord) -> Path:
        """Write what was trained to the artifact `folder`; returns it."""
        return save_artifact(self.model.model, tokenizer, folder, record=record)  # type: ignore[arg-type]

    @property
    def model(self) -> PolicyModel:
        """The policy. Raises RuntimeError before `configure_model`."""
        if self.policy is None:
            raise RuntimeError("the policy exists after configure_model")
        return self.policy

    def transfer_batch_to_device(self, batch: TokenTree, device: torch.device, dataloader_idx: int) -> TokenTree:
        return to_device(batch, device)

    def trained_parameters(self) -> NamedParameters:
        """Names and parameters the optimizer sees."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    def configure_optimizers(self) -> Any:
        optimizer = self.recipe.optimizer(self.trained_parameters())
        scheduler = self.recipe.scheduler(optimizer, self.recipe.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Set the learning rates that the schedule gives for this step: a run that goes on longer than planned has another schedule."""
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, LambdaLR):
            place = scheduler.last_epoch
            for group, base, factor in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
                group["lr"] = base * factor(place)

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        limit = float("inf") if self.recipe.gradient_clip is None else self.recipe.gradient_clip
        parameters: Iterable[nn.Parameter] = (p for _, p in self.trained_parameters())
        self.grad_norm = float(nn.utils.clip_grad_norm_(parameters, limit))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {name for name, _ in self.trained_parameters()}
        if len(trained) < sum(1 for _ in self.named_parameters()):
            checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        missing = {name for name, _ in self.trained_parameters()} - set(checkpoint["state_dict"])
        if missing:
            raise RuntimeError(f"the checkpoint lacks {len(missing)} trained parameters, such as {sorted(missing)[0]}")
