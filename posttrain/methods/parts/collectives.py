"""What the ranks tell each other."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def gather(value: Any) -> list[Any]:
    """Everybody's picklable value, by rank, on every rank."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return [value]
    everybody: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, value)
    return everybody
