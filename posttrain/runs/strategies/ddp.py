"""Whole weights on every device: one device, or several that average their gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.runs.strategies.registry import PATIENCE, Distribution, strategy


@strategy("single", "ddp")
def data_parallel(config: Mapping[str, Any]) -> Distribution:
    """Data parallel over the shape's devices; a shape with one device needs no group."""
    from lightning.pytorch.strategies import DDPStrategy

    from posttrain.models.sharding import Replicated

    hardware = config["hardware"]
    if hardware["nodes"] * hardware["devices"] == 1:
        return Distribution("auto", Replicated())
    return Distribution(DDPStrategy(process_group_backend=hardware["backend"], broadcast_buffers=False, timeout=PATIENCE), Replicated())
