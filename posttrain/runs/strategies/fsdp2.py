"""Weights, gradients and optimizer state sharded over all devices (FSDP2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.runs.strategies.registry import PATIENCE, Distribution, strategy


@strategy("fsdp2")
def fully_sharded(config: Mapping[str, Any]) -> Distribution:
    """Every device holds an equal part of every weight. hardware.offload keeps the parts in host memory."""
    import torch

    from posttrain.models.fsdp2 import FullySharded
    from posttrain.runs.sharded import ShardedStrategy

    hardware = config["hardware"]
    offload, backend, together = hardware["offload"], hardware["backend"], hardware["tensor_parallel"]
    made = ShardedStrategy(
        offload=offload,
        data_parallel_size=hardware["nodes"] * hardware["devices"] // together,
        tensor_parallel_size=together,
        process_group_backend=f"cpu:gloo,cuda:{backend}" if offload else backend,
        timeout=PATIENCE,
    )
    dtype = torch.bfloat16 if config["precision"] == "bf16" else None
    if together > 1:
        from posttrain.models.tensor_parallel import TensorParallel

        return Distribution(made, TensorParallel(lambda: made.device_mesh, layer_dtype=dtype))
    return Distribution(made, FullySharded(lambda: made.device_mesh["data_parallel"], layer_dtype=dtype, offload=offload))
