"""A ring of processes that hand tensors on, each to the next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

Block = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Ring:
    """The ranks that a row is cut over. rank: of this process in the group. group: None for all processes."""

    rank: int
    size: int
    group: dist.ProcessGroup | None = None

    def pass_on(self, block: Block) -> Passing:
        """Begin to send tensors to the next rank, and to receive as many of the same shapes and types from the one before."""
        coming = tuple(torch.empty_like(tensor) for tensor in block)
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        sends = [dist.P2POp(dist.isend, tensor, group=self.group, group_peer=after) for tensor in block]
        receives = [dist.P2POp(dist.irecv, tensor, group=self.group, group_peer=before) for tensor in coming]
        return Passing(block, coming, dist.batch_isend_irecv([*sends, *receives]))

    def owner(self, hop: int) -> int:
        """Whose keys and values are here in this hop."""
        return (self.rank - hop) % self.size


@dataclass(frozen=True)
class Passing:
    """Tensors on their way; `going` is held until they have left."""

    going: Block
    coming: Block
    works: list[dist.Work]

    def wait(self) -> Block:
        """What has come."""
        for work in self.works:
            work.wait()
        return self.coming


ALONE = Ring(0, 1)


def own_ring(size: int) -> Ring:
    """This process's ring, of `size` ranks one after the other. Every process calls it. Raises ValueError if they make no whole rings."""
    world = dist.get_world_size()
    if world % size:
        raise ValueError(f"{world} ranks do not make rings of {size}")
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, world, size)]
    number, rank = divmod(dist.get_rank(), size)
    group = groups[number]
    assert isinstance(group, dist.ProcessGroup)
    return Ring(rank, size, group)
