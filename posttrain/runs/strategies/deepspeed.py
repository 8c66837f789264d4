"""ZeRO stages 1, 2 and 3 by DeepSpeed: it cuts the optimizer's states, then the gradients, then the weights into a piece a rank."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from posttrain.runs.strategies.registry import PATIENCE, Distribution, strategy
from posttrain.runs.zero_rules import STAGES


@strategy(*STAGES)
def zero(config: Mapping[str, Any]) -> Distribution:
    """ZeRO of the stage that the name says, with the weights in float32 and the arithmetic of the config's precision."""
    os.environ.setdefault("DS_ACCELERATOR", config["hardware"]["accelerator"])  # read when deepspeed is imported
    from posttrain.runs.zero.sharding import WeightsInPieces, WholeWeights
    from posttrain.runs.zero.strategy import ZeroStrategy

    hardware = config["hardware"]
    stage = STAGES[hardware["strategy"]]
    sharding = WeightsInPieces() if stage == 3 else WholeWeights()
    made = ZeroStrategy(settings(config, stage), sharding, process_group_backend=hardware["backend"], timeout=PATIENCE)
    return Distribution(made, sharding)


def settings(config: Mapping[str, Any], stage: int) -> dict[str, Any]:
    """DeepSpeed's own configuration. The optimizer is torch's; no weight is too small to be cut."""
    hardware = config["hardware"]
    to_host = {"device": "cpu", "pin_memory": hardware["accelerator"] == "cuda"}
    offloaded = {"offload_optimizer": to_host, **({"offload_param": to_host} if stage == 3 else {})}
    return {
        "train_micro_batch_size_per_gpu": 1,  # a micro-batch is a row of token trees; losses know their own denominators
        "gradient_clipping": config["gradient_clip"] or 0.0,
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": 0,
            "overlap_comm": hardware["accelerator"] == "cuda",
            **(offloaded if hardware["offload"] else {}),
        },
    }
