"""What every alignment method shares: a policy, its optimizer, and losses that do not depend on how a step is split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase

from posttrain.data.tree import to_device
from posttrain.errors import ConfigError, Problem
from posttrain.functional.supervised import likelihood_metrics, likelihood_rows, likelihood_scores
from posttrain.methods.parts.recipe import NamedParameters, Recipe, Stateful, Steps, nothing_spent
from posttrain.models.artifact import ArtifactRecord, save_artifact
from posttrain.models.flops import FlopModel, flop_model
from posttrain.models.policy import PolicyModel
from posttrain.models.sharding import Sharding
from posttrain.types import StepShare, TokenTree, Work

KEPT = "kept"  # in a checkpoint


class Method(LightningModule, ABC):
    """Base of the methods. A leaf states its loss in `loss_of`; the loop is Lightning's automatic optimisation.

    loss_inputs: names of the positional tensors the method hands to its loss. data_kind: which examples it trains on. language_model:
    whether it trains the model's output head, and hands on what can write text. report: the closing report that reads its `outcomes`
    (a name in posttrain.runs.reports); None for none. online: whether it learns from answers that it samples itself.
    per_token: whether its loss and measures are sums over targets, so that a row may be cut anywhere, over several ranks.
    kept: what checkpoints hold beside tensors, by name. steps: set when training begins. spent: share of a budget that is watched. place:
    of the present micro-batch among this rank's in the step. examples: of the present step.
    """

    loss_inputs: ClassVar[tuple[str, ...]]
    data_kind: ClassVar[str]
    language_model: ClassVar[bool] = True
    report: ClassVar[str | None] = None
    online: ClassVar[bool] = False
    per_token: ClassVar[bool] = False

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.policy: PolicyModel | None = None
        self.operations: FlopModel | None = None
        self.strict_loading = False  # frozen weights are not in checkpoints; on_load_checkpoint checks the others
        self.kept: dict[str, Stateful] = {}
        self.grad_norm = float("nan")
        self.steps: Steps | None = None
        self.spent: Callable[[], float] = nothing_spent
        self.place = self.number = self.examples = 0
        self._sums: dict[str, Tensor] = {}

    @abstractmethod
    def loss_of(self, tree: TokenTree) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor]]:
        """This micro-batch's part of the step's loss, an auxiliary loss to be averaged over micro-batches (or None), and metric parts.

        Parts of a step add up to its value.
        """

    def configure_model(self) -> None:
        """Build the model, once; the strategy has set up its processes."""
        if self.policy is None:
            self.policy = self.recipe.policy()
            self.build_beside()
            self.operations = flop_model(
                self.policy, half=self.recipe.half, knows_slopes=self.knows_slopes
            )  # a strategy may cut the weights later
            self.sharding.shard(self)

    def build_beside(self) -> None:
        """Build what stands beside the new policy: heads, a reference."""

    @property
    def sharding(self) -> Sharding:
        """How the weights lie over the ranks."""
        return self.recipe.sharding

    def training_step(self, tree: TokenTree, batch_idx: int) -> Tensor:
        if self.steps is None:
            raise RuntimeError("method.steps must be set before training")
        step, self.place = divmod(batch_idx, self.steps.micro_batches)
        self.number = self.place - self._empty(tree.share)
        self.examples = tree.share.examples
        if self.place == 0:
            self.before_step(step)
        if self.idle:
            self._accumulate({"loss": torch.zeros((), device=self.device)})
            return self._nothing()
        if not len(tree.ids):  # empty on every rank, so that no collective waits for it; never the step's last
            return self._nothing()
        loss, aux, metrics = self.loss_of(tree)
        parts = {"loss": loss, **metrics}
        total = loss * tree.share.parts  # the loop averages over micro-batches and ranks
        if aux is not None:
            filled = tree.share.filled or tree.share.parts
            parts["aux_loss"] = aux / filled
            total = total + aux * (tree.share.parts / filled)
        self._accumulate(parts)
        return total

    def _empty(self, share: StepShare) -> int:
        """Micro-batches of a rank's step that come before those that hold something."""
        assert self.steps is not None
        return 0 if share.filled is None else self.steps.micro_batches * (share.parts - share.filled) // share.parts

    def _nothing(self) -> Tensor:
        """A loss without a gradient."""
        assert self.steps is not None
        trained = [parameter for _, parameter in self.trained_parameters()]
        return self.sharding.idle_loss(trained, last=self.place + 1 == self.steps.micro_batches)

    @property
    def idle(self) -> bool:
        """Whether the present step learns nothing: its micro-batches are not looked at, and the optimizer moves nothing."""
        return False

    def before_step(self, step: int) -> None:
        """Called before the first micro-batch of optimizer step `step`, counted from 0."""

    def after_step(self, sums: Mapping[str, float]) -> None:
        """Called when an optimizer step is done, before anything is saved, with the step's metrics over all ranks."""

    def step_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """What is reported of a step, from the sums over its micro-batches and ranks."""
        return dict(sums)

    def step_trees(self, step: int, *, mismatched: bool = False) -> Iterator[TokenTree]:
        """This rank's micro-batches of an optimizer step, on its device."""
        assert self.steps is not None
        return (to_device(tree, self.device) for tree in self.steps.step_trees(step, mismatched=mismatched))

    @property
    def knows_slopes(self) -> bool:
        """Whether the loss's slopes in the log-probabilities are known before it is computed: see `token_stats`."""
        return False

    @property
    def forward_passes(self) -> float:
        """Forward passes without a backward one for every tree that is trained on: of a reference, or over a step in advance."""
        return 0.0

    @property
    def bare_passes(self) -> float:
        """Of the forward passes (online: of those between steps), those of the policy without its adapters."""
        return 0.0

    def flops(self, work: Work) -> float:
        """Floating-point operations of a step on `work`. Raises RuntimeError before `configure_model`."""
        if self.operations is None:
            raise RuntimeError("a method's operations are known after configure_model")
        # a reward model's body has no use for the output head
        bare = 0.0 if self.online else self.bare_passes  # those between steps are counted with the rollout
        return self.operations.of(work, passes=self.forward_passes, bare=bare, heads=self.language_model)

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]: of its steps, or of its budget where that is further."""
        return min(1.0, max(self.global_step / self.recipe.max_steps, self.spent()))

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
        """What this tree adds to the sums that `validation_summary` reads, in all or for each example: here the targets' likelihood."""
        stats, _ = self.model(tree, correct=True)
        return likelihood_rows(stats.logps, stats.correct, tree)

    def validation_scores(self, rows: Mapping[str, Tensor]) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Of metrics that are means over examples: value and weight of each, [E]. rows: the parts that were given for each example."""
        return likelihood_scores(rows) if rows else {}

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

    def modules_beside(self, width: int) -> list[nn.Module]:
        """What it trains beside a policy of this hidden width, made anew."""
        return []

    def copies(self, *, adapters_off_restore: bool) -> int:
        """Frozen copies of the policy that it keeps. adapters_off_restore: whether its policy without adapters is what it began as."""
        return 0

    def unused(self, values: np.ndarray) -> Iterator[Problem]:
        """Options that have no effect on the training data; values: what is known at the marks of all examples, joined."""
        yield from ()

    def transfer_batch_to_device(self, batch: TokenTree, device: torch.device, dataloader_idx: int) -> TokenTree:
        return to_device(batch, device)

    def trained_parameters(self) -> NamedParameters:
        """Names and parameters the optimizer sees."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    def make_optimizer(self) -> Optimizer:
        """Of everything that is trained; a method may give some of it a learning rate of its own."""
        return self.recipe.optimizer(self.trained_parameters())

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer()
        scheduler = self.recipe.scheduler(optimizer, self.recipe.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """A run that goes on longer than planned has another schedule."""
        self.set_rates()

    def set_rates(self) -> None:
        """Set the learning rates that the schedule gives for this step, or for this share of a budget that is being spent."""
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, LambdaLR):
            place: Any = scheduler.last_epoch if self.spent is nothing_spent else self.progress * self.recipe.max_steps
            for group, base, factor in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
                group["lr"] = base * factor(place)

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        limit = float("inf") if self.recipe.gradient_clip is None else self.recipe.gradient_clip
        trained = [p for _, p in self.trained_parameters()]
        self.grad_norm = 0.0 if self.idle else self.sharding.clip_gradients(trained, limit)
        if self.grad_norm == 0.0:  # nothing was learnt. Optimizers pass over weights without a gradient: no decay, no momentum, no count
            self.zero_grad(set_to_none=True)

    def saved_names(self) -> set[str]:
        """Of what a checkpoint must hold: the trained parameters, and what a method learns beside its policy."""
        buffers = {name for name, _ in self.named_buffers() if not name.startswith(("policy.", "reference."))}
        own = buffers & self.state_dict().keys()  # some buffers are constants, and not kept
        return {name for name, _ in self.trained_parameters()} | own

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEPT] = {name: part.state_dict() for name, part in self.kept.items()}
        if any(not parameter.requires_grad for parameter in self.parameters()):
            saved = self.saved_names()
            checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in saved}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ConfigError where the checkpoint is one of another model or method."""
        kept = checkpoint.get(KEPT, {})
        if wrong := self._unfit(checkpoint["state_dict"], kept):
            hint = "resume from a run with the same model, adapter and method, or start from its artifact: model=hf model.path=RUN/artifact"
            raise ConfigError(Problem("resume", f"the checkpoint does not fit this run: {wrong}", hint))
        for name, part in self.kept.items():
            part.load_state_dict(kept[name])

    def _unfit(self, weights: Mapping[str, Tensor], kept: Mapping[str, Any]) -> str:
        """Why a checkpoint cannot be loaded, in words; empty where it can."""
        own = self.state_dict()
        if missing := self.saved_names() - weights.keys():
            return f"it lacks {len(missing)} of the method's weights, such as {sorted(missing)[0]}"
        if foreign := {name for name in weights if name.startswith("policy.")} - own.keys():
            return f"it has {len(foreign)} weights that this model has not, such as {sorted(foreign)[0]}"
        for name, tensor in weights.items():
            if name in own and own[name].numel() and own[name].shape != tensor.shape:  # those that lie on other ranks have no numbers here
                return f"its {name} has the shape {list(tensor.shape)}, this model's {list(own[name].shape)}"
        if lacking := self.kept.keys() - kept.keys():
            return f"it lacks what the method keeps beside its weights: {', '.join(sorted(lacking))}"
        return ""
