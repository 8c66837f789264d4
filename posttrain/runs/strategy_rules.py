"""Rules about how a run is spread over its devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from posttrain.errors import Problem
from posttrain.runs import zero_rules

Config = Mapping[str, Any]

WHOLE_WEIGHTS = {
    "adamw_8bit": "keeps its moments in blocks of whole weights",
    "adafactor": "keeps means over whole rows and columns",
}


def strategy_fits(config: Config) -> Iterator[Problem]:
    """Devices, strategy, backend and precision must go together."""
    hardware = config["hardware"]
    devices = hardware["devices"] * hardware["nodes"]
    if hardware["strategy"] == "single" and devices > 1:
        yield Problem("hardware.strategy", f"single is for one device, hardware={hardware['name']} has {devices}", "use ddp or auto")
    if hardware["accelerator"] == "cpu" and hardware["backend"] == "nccl":
        yield Problem("hardware.backend", "nccl needs CUDA devices", "hardware.backend=gloo")
    if hardware["strategy"] == "fsdp2" and devices == 1:
        yield Problem("hardware.strategy", "fsdp2 shards over several devices, and this shape has one", "hardware.strategy=single")


def sharding_fits(config: Config) -> Iterator[Problem]:
    """What is asked for besides must work on sharded weights; offload is for them alone."""
    hardware = config["hardware"]
    if hardware["strategy"] in UNSHARDABLE:
        yield from UNSHARDABLE[hardware["strategy"]](config)
    elif hardware["offload"]:
        message = f"is of shards, and hardware.strategy={hardware['strategy']} does not say that there are any"
        yield Problem("hardware.offload", message, "hardware.strategy=fsdp2, or hardware.offload=false")


def fsdp2_problems(config: Config) -> Iterator[Problem]:
    """What fsdp2 cannot shard."""
    hardware, peft = config["hardware"], config["model"].get("peft") or {}
    if peft.get("quantise"):
        message = f"weights in {peft['quantise']} are packed with their scales beside them, and fsdp2 would cut the one from the other"
        yield Problem("hardware.strategy", message, "hardware.strategy=ddp: a quantised base fits on one device, or model/peft=lora")
    name = config["optimizer"].get("_target_", "").rpartition(".")[2]
    if name in WHOLE_WEIGHTS:
        message = f"{name} {WHOLE_WEIGHTS[name]}, and fsdp2 gives it parts"
        yield Problem("hardware.strategy", message, "optimizer=adamw (sharded over the devices), or hardware.strategy=ddp")
    if hardware["offload"] and hardware["accelerator"] == "cpu":
        yield Problem("hardware.offload", "weights of a run on the CPU lie in host memory already", "hardware.offload=false")


UNSHARDABLE: dict[str, Callable[[Config], Iterator[Problem]]] = {
    "fsdp2": fsdp2_problems,
    **dict.fromkeys(zero_rules.STAGES, zero_rules.zero_problems),
}
