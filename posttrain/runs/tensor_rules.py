"""Rules about runs whose devices share each micro-batch (`hardware.tensor_parallel`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from posttrain.errors import Problem

Config = Mapping[str, Any]

KEY = "hardware.tensor_parallel"
ALONE = f"{KEY}=1"
METHODS = ("posttrain.methods.supervised.SFT", "posttrain.methods.supervised.Pretrain")


def tensor_parallel_fits(config: Config) -> Iterator[Problem]:
    """What is asked for besides must work on layers that are cut. Whether the model's can be is the preflight's to find."""
    hardware, model = config["hardware"], config["model"]
    together = hardware["tensor_parallel"]
    if together == 1:
        return
    if hardware["devices"] % together:
        yield Problem(KEY, f"{hardware['devices']} devices of a node cannot be grouped by {together}", ALONE)
    if hardware["strategy"] != "fsdp2":
        message = f"layers are cut beside fsdp2, and hardware.strategy={hardware['strategy']} keeps or cuts them another way"
        yield Problem(KEY, message, f"hardware.strategy=fsdp2, or {ALONE}")
    if config["method"].get("_target_") not in METHODS:
        message = "only sft and pretrain are known to compute the same on layers that are cut: the others exchange what each rank knows"
        yield Problem(KEY, message, ALONE)
    if hardware["offload"]:
        yield Problem(KEY, "parts of layers are not known to come back right from host memory", "hardware.offload=false")
    for name, why in UNCUT.items():
        if model.get(name):
            yield Problem(KEY, why, f"model.{name}=null, or {ALONE}" if name != "compile" else "model.compile=false")


UNCUT = {
    "peft": "adapters would have to be cut with the layers that they stand beside, and the plan of the cuts does not know them",
    "float8": "8-bit layers scale by whole operands, of which a device has a part",
    "compile": "compiled layers are not known to compute the same when they are cut",
}
