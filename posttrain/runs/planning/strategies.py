"""What each strategy keeps on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from posttrain.runs.planning.shapes import Weights

BUCKET = 200_000_000  # elements of a DeepSpeed communication bucket: Lightning's default
MASTER = 12  # bytes a trained weight in DeepSpeed's optimizer: a float32 copy and two moments


@dataclass(frozen=True)
class Sharding:
    """Which of a model's states are cut into as many parts as there are devices. words: what it does. buffers: bytes that it needs for
    talking to the other devices, of (weights, devices). master: whether its optimizer works on a float32 copy of its own. host: what
    `hardware.offload` moves to the host's memory."""

    words: str
    weights: bool
    gradients: bool
    optimizer: bool
    buffers: Callable[[Weights, int], float]
    master: bool = False
    host: frozenset[str] = frozenset()


def _none(weights: Weights, devices: int) -> float:
    return 0.0


def _ddp(weights: Weights, devices: int) -> float:
    """Gradients once more, in the buckets in which they are summed over the devices."""
    return float(weights.trained_bytes) if devices > 1 else 0.0


def _gathered(weights: Weights, devices: int) -> float:
    """Two layers and what lies outside the layers, whole, and the gradients of one of these layers before they are cut."""
    whole = 2 * weights.largest_layer + weights.outside
    return float(whole + (weights.largest_layer + weights.outside if weights.frozen == 0 else 0))


def _buckets(weights: Weights, devices: int) -> float:
    return 2.0 * min(BUCKET, weights.trained) * weights.trained_bytes / max(weights.trained, 1)


def _gathered_buckets(weights: Weights, devices: int) -> float:
    return _gathered(weights, devices) + _buckets(weights, devices) / 2


EVERYTHING = frozenset({"weights", "gradients", "optimizer"})
SHARDINGS = {
    "single": Sharding("everything on one device", False, False, False, _none),
    "ddp": Sharding("a whole copy of everything on every device", False, False, False, _ddp),
    "fsdp2": Sharding("weights, gradients and optimizer state cut over the devices", True, True, True, _gathered, host=EVERYTHING),
    "zero1": Sharding("optimizer state cut over the devices", False, False, True, _buckets, True, frozenset({"optimizer"})),
    "zero2": Sharding("optimizer state and gradients cut over the devices", False, True, True, _buckets, True, frozenset({"optimizer"})),
    "zero3": Sharding("weights, gradients and optimizer state cut over the devices", True, True, True, _gathered_buckets, True, EVERYTHING),
}
