"""The reference policy of a preference method: log-probabilities of a tree's targets under the model that entered the stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from posttrain.models.policy import PolicyModel
from posttrain.types import TokenTree


class Reference(Protocol):
    """Log-probabilities [N] of a tree's targets, without a gradient."""

    def __call__(self, tree: TokenTree) -> Tensor: ...


class AdaptersOff:
    """The policy with its adapters switched off: no second copy of the weights.

    Right where the adapters start as nothing on top of the model that entered the stage, see `peft.disabling_restores_base`.
    """

    def __init__(self, policy: PolicyModel) -> None:
        self.policy = policy

    @torch.no_grad()
    def __call__(self, tree: TokenTree) -> Tensor:
        with self.policy.model.disable_adapter(), inference(self.policy):  # type: ignore[operator]
            stats, _ = self.policy(tree)
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
    def forward(self, tree: TokenTree) -> Tensor:
        stats, _ = self.policy(tree)
        return stats.logps


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
