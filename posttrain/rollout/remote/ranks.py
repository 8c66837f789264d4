"""One rank speaks with the server; the others wait for what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def first_rank() -> bool:
    """Whether this process is rank 0, or the only one."""
    return not _several() or dist.get_rank() == 0


def from_first(task: Callable[[], T]) -> T:
    """What `task` returns on rank 0, which alone runs it. What it raises there is raised on every rank, so that none is left waiting."""
    if not _several():
        return task()
    box: list[tuple[T | None, Exception | None]] = [(None, None)]
    if dist.get_rank() == 0:
        try:
            box = [(task(), None)]
        except Exception as error:
            box = [(None, error)]
    dist.broadcast_object_list(box)
    value, failure = box[0]
    if failure is not None:
        raise failure
    return value  # type: ignore[return-value]


def anybody(mine: bool) -> bool:
    """Whether it is so on any rank."""
    if not _several():
        return mine
    everybody = [False] * dist.get_world_size()
    dist.all_gather_object(everybody, mine)
    return any(everybody)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
