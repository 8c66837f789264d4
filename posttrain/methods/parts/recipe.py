"""What a method is given: how it is trained, and where its micro-batches come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from posttrain.models.policy import PolicyModel
from posttrain.models.sharding import Replicated, Sharding
from posttrain.types import Rendering, TokenTree, Work

NamedParameters = list[tuple[str, nn.Parameter]]


def nothing_spent() -> float:
    """Of a budget that nobody watches."""
    return 0.0


@dataclass(frozen=True)
class Recipe:
    """What a method is given to train with.

    policy: builds the model; called once, on every rank, when the strategy is ready. optimizer: named parameters -> optimizer.
    scheduler: (optimizer, max_steps) -> learning-rate scheduler. gradient_clip: largest global gradient norm, None for no clipping.
    seed: of what the method itself draws at random, such as a new head. rendering: of the training data, for artifacts that read
    conversations in the same way. sharding: how weights lie over the ranks. trains: False for a method that only hands on what is trained.
    half: whether products are computed in 16 bits.
    """

    policy: Callable[[], PolicyModel]
    optimizer: Callable[[NamedParameters], Optimizer]
    scheduler: Callable[[Optimizer, int], LRScheduler]
    max_steps: int
    gradient_clip: float | None = 1.0
    seed: int = 0
    rendering: Rendering = field(default_factory=Rendering)
    sharding: Sharding = field(default_factory=Replicated)
    trains: bool = True
    half: bool = False


class Steps(Protocol):
    """Where the micro-batches come from: what a method may ask that needs more of a step than its present part."""

    @property
    def micro_batches(self) -> int:
        """Of this rank, in each optimizer step."""

    @property
    def parts(self) -> int:
        """Micro-batches of a step over all ranks."""

    def step_trees(self, step: int, *, mismatched: bool = False) -> Iterator[TokenTree]:
        """This rank's micro-batches of optimizer step `step`; mismatched: its prompts with answers to other prompts."""

    def work(self, step: int) -> Work:
        """What optimizer step `step` computes on, over all ranks."""

    def notes(self, step: int) -> Mapping[str, float]:
        """What is reported with step `step` besides the method's own metrics."""

    def pop_seconds(self) -> Mapping[str, float]:
        """Seconds by phase, of what happened between steps since the last call."""


class Stateful(Protocol):
    """What is told in numbers and texts, and can be put back."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
