"""The reference policy of a preference method: log-probabilities of a tree's targets under the model that entered the stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from posttrain.models.policy import PolicyModel
from posttrain.types import TokenTree

ReferenceKind = Literal["auto", "adapters", "copy", "cached"]


class Reference(Protocol):
    """Log-probabilities [N] of a tree's targets, without a gradient. temperature: divides the logits."""

    def __call__(self, tree: TokenTree, *, temperature: float = 1.0) -> Tensor: ...


class AdaptersOff:
    """The policy with its adapters switched off: no second copy of the weights.

    Right where the adapters start as nothing on top of the model that entered the stage, see `peft.disabling_restores_base`.
    """

    def __init__(self, policy: PolicyModel) -> None:
        self.policy = policy

    @torch.no_grad()
    def __call__(self, tree: TokenTree, *, temperature: float = 1.0) -> Tensor:
        with self.policy.model.disable_adapter(), inference(self.policy):  # type: ignore[operator]
            stats, _ = self.policy(tree, temperature=temperature)
        return stats.logps


class FrozenCopy(nn.Module):
    """A second model, never trained."""

    def __init__(self, policy: PolicyModel) -> None:
        super().__init__()
        self.policy = policy.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenCopy:
        """Stays in evaluation mode, whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, tree: TokenTree, *, temperature: float = 1.0) -> Tensor:
        stats, _ = self.policy(tree, temperature=temperature)
        return stats.logps

    @torch.no_grad()
    def follow(self, policy: PolicyModel, mix: float) -> None:
        """Move every weight that `policy` trains by the share `mix` of the way to it."""
        ours = dict(self.policy.named_parameters())
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                ours[name].lerp_(parameter, mix)


class Cached:
    """What was computed before training and travels in the tree, at whatever temperature that was."""

    def __call__(self, tree: TokenTree, *, temperature: float = 1.0) -> Tensor:
        if tree.reference is None:
            raise RuntimeError("the examples carry no log-probabilities of the reference")
        return tree.reference


class ReferencePolicy(nn.Module):
    """The reference a method was configured with.

    kind: adapters (the policy with its adapters off), copy (a second, frozen model), cached (computed before training), or auto: adapters
    where the policy has them, else a copy. update_every: optimizer steps after which the copy moves towards the policy by the share
    update_mix (TR-DPO, arXiv:2404.09656, eq. 6); None: it never moves.
    """

    def __init__(self, kind: ReferenceKind, *, update_every: int | None = None, update_mix: float = 0.6) -> None:
        super().__init__()
        self.kind, self.update_every, self.update_mix = kind, update_every, update_mix
        self.source: Reference | None = None
        self._advanced = 0  # the step that it was last advanced for

    def build(self, policy: PolicyModel, entering: Callable[[], PolicyModel]) -> None:
        """Once the policy is there; entering: builds the model that entered the stage."""
        if self.source is not None:
            return
        if self.kind == "cached":
            self.source = Cached()
        elif self.is_copy(adapters_off_restore=policy.base_with_adapters_off):
            self.source = FrozenCopy(entering())
        else:
            self.source = AdaptersOff(policy)

    def is_copy(self, *, adapters_off_restore: bool) -> bool:
        """Whether the reference is a second model. adapters_off_restore: whether the policy without its adapters is what it began as."""
        return self.kind == "copy" or (self.kind == "auto" and not (adapters_off_restore and self.update_every is None))

    def forward(self, tree: TokenTree, *, temperature: float = 1.0) -> Tensor:
        if self.source is None:
            raise RuntimeError("the reference exists after configure_model")
        return self.source(tree, temperature=temperature)

    @property
    def forward_passes(self) -> float:
        """Of a model, for every tree it is asked about."""
        return 0.0 if self.kind == "cached" else 1.0

    def advance(self, step: int, policy: PolicyModel) -> None:
        """Before optimizer step `step` (from 0): move if it is time, and not if that is done."""
        if self.due(step) and isinstance(self.source, FrozenCopy):
            self.source.follow(policy, self.update_mix)
        self._advanced = step

    def due(self, step: int) -> bool:
        """Whether it has yet to move before optimizer step `step`."""
        return bool(self.update_every) and step % (self.update_every or 1) == 0 and step != self._advanced

    def moving_names(self, trained: set[str]) -> set[str]:
        """Names of this module's weights that move, for checkpoints. trained: names within the policy."""
        moves = self.update_every is not None and isinstance(self.source, FrozenCopy)
        return {f"source.policy.{name}" for name in trained} if moves else set()


def drops_out(policy: PolicyModel) -> bool:
    """Whether the policy in training leaves out some activations at random."""
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in policy.modules())


def without_dropout(policy: PolicyModel) -> None:
    """Put the policy into evaluation mode for training. Checkpointed layers keep their own mode, which is what switches checkpoints on."""
    policy.eval()
    for module in policy.modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            module.training = True


@contextmanager
def inference(policy: PolicyModel) -> Iterator[None]:
    """The policy in evaluation mode inside the block: no dropout."""
    modes = {module: module.training for module in policy.modules()}
    policy.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
