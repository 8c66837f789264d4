"""Which of the run's processes this is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from posttrain.functional.cuts import part_of
from posttrain.types import Stretch


@dataclass(frozen=True)
class Ranks:
    """rank and world: over all nodes. local: on this node. together: neighbours that compute each micro-batch together, each with a part of
    the weights. context: neighbours that a micro-batch's row is cut over. Not both at once. cut: the attention over such rows."""

    rank: int = 0
    world: int = 1
    local: int = 0
    together: int = 1
    context: int = 1
    cut: str = "ring"

    @property
    def member(self) -> int:
        """This process's place among those that compute something of their own."""
        return self.rank // self.together

    @property
    def members(self) -> int:
        """Over how many what is computed is shared out."""
        return self.world // self.together

    @property
    def reader(self) -> int:
        """Which of the step's micro-batches are this process's."""
        return self.member // self.context

    @property
    def readers(self) -> int:
        """What the micro-batches of a step are split over."""
        return self.members // self.context

    @property
    def leads(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    @property
    def stretch(self) -> Stretch:
        """What of each of them is this process's."""
        return part_of(self.cut, self.rank % self.context, self.context)


def from_environment(environment: Mapping[str, str] | None = None) -> Ranks:
    """Ranks as set by our launchers, in torchrun's names; a single process otherwise."""
    given = os.environ if environment is None else environment
    if "LOCAL_RANK" in given:
        return Ranks(int(given["RANK"]), int(given["WORLD_SIZE"]), int(given["LOCAL_RANK"]))
    return Ranks()


def placed(ranks: Ranks, hardware: Mapping[str, Any]) -> Ranks:
    """A process among those that work together as a hardware shape says."""
    cut = hardware["context_method"] or Ranks.cut
    return replace(ranks, together=hardware["tensor_parallel"], context=hardware["context_parallel"], cut=cut)


def sum_over_ranks(values: Mapping[str, float | Tensor], device: torch.device, *, together: int = 1) -> dict[str, float]:
    """Sum float64 scalars over all ranks, in one collective; every rank must give the same names. Just the values without a group.

    together: neighbours that have the same values, which count once.
    """
    names = sorted(values)
    packed = torch.stack([torch.as_tensor(values[name], dtype=torch.float64).cpu() for name in names])
    if dist.is_initialized() and dist.get_world_size() > 1:
        packed = packed.to(device)
        dist.all_reduce(packed)
        packed /= together
    return dict(zip(names, packed.tolist(), strict=True))


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
