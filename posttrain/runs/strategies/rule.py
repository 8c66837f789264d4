"""What `hardware.strategy=auto` means.

One device: single. Several: ddp where the whole training state of the model fits on one of them, else fsdp2, which shards it. What fsdp2
cannot shard (a quantised base, whose weights are small; optimizers that need whole weights): ddp. A shape that states no memory: ddp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.runs.strategy_rules import fsdp2_problems

Config = Mapping[str, Any]
BYTES = {"float32": 4, "bf16": 4, "bf16_true": 2}  # of a weight; its gradient and each of Adam's two moments are kept alike
TRAINED = 5  # a weight, its gradient, the bucket in which ranks exchange it, two moments
SHARE = 0.7  # of a device's memory; the rest is for activations, the head's chunks and fragmentation


@dataclass(frozen=True)
class Weights:
    """Numbers of weights of a model, adapters included."""

    total: int
    trainable: int


@dataclass(frozen=True)
class Choice:
    """A strategy's name, and why it is this one."""

    name: str
    why: str


def pick(config: Config, weights: Callable[[Config], Weights]) -> Choice:
    """The strategy of a config. weights: counts the model's; asked only where the answer depends on it."""
    hardware = config["hardware"]
    if hardware["strategy"] != "auto":
        return Choice(str(hardware["strategy"]), "asked for")
    if hardware["nodes"] * hardware["devices"] == 1:
        return Choice("single", "one device")
    if hardware["memory_gb"] is None:
        return Choice("ddp", "the shape does not say how much memory a device has")
    obstacle = next(fsdp2_problems(config), None)
    if obstacle is not None:
        return Choice("ddp", f"fsdp2 cannot cut it: {obstacle.message}")
    needed = training_bytes(weights(config), precision=config["precision"], copies=_copies(config))
    if needed <= SHARE * hardware["memory_gb"] * 2**30:
        return Choice("ddp", f"a whole copy of the training state takes less than {SHARE:.0%} of a device")
    return Choice("fsdp2", f"a whole copy of the training state would take more than {SHARE:.0%} of a device")


def training_bytes(weights: Weights, *, precision: str, copies: int = 0) -> float:
    """Memory that data-parallel training holds on each device between steps. copies: frozen ones beside the policy."""
    frozen = weights.total - weights.trainable + copies * weights.total
    return float(BYTES[precision] * (TRAINED * weights.trainable + frozen))


def _copies(config: Config) -> int:
    """Frozen copies of the policy: a reference that is no adapter switched off and no cache."""
    kind = config["method"].get("reference")
    return int(kind == "copy" or (kind == "auto" and config["model"].get("peft") is None))
