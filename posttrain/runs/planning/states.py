"""Bytes of what lasts from step to step: weights, gradients, optimizer state, frozen copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.runs.planning.shapes import Weights
from posttrain.runs.planning.strategies import MASTER, Buffers, Group, Sharding

Options = Mapping[str, Any]


def _two_moments(weights: Weights, options: Options) -> float:
    return 2.0 * weights.trained_bytes


def _eight_bits(weights: Weights, options: Options) -> float:
    """Two bytes a weight and the scales of blocks of 256; small tensors keep two float32 moments."""
    return 2 * (weights.trained - weights.small) * (1 + 4 / 256) + 8.0 * weights.small


def _factored(weights: Weights, options: Options) -> float:
    return 4.0 * (weights.factored + weights.vectors)


def _momentum(weights: Weights, options: Options) -> float:
    return float(weights.trained_bytes) if options.get("momentum") else 0.0


OPTIMIZERS: Mapping[str, Callable[[Weights, Options], float]] = {
    "posttrain.models.optimizers.adamw": _two_moments,
    "posttrain.models.optimizers.adamw_8bit": _eight_bits,
    "posttrain.models.optimizers.adafactor": _factored,
    "posttrain.models.optimizers.sgd": _momentum,
}


@dataclass(frozen=True)
class States:
    """Bytes on one device. buffers: of the strategy. host: what offloading has moved to the host's memory."""

    weights: float
    copies: float
    gradients: float
    optimizer: float
    buffers: Buffers
    host: float

    @property
    def lasting(self) -> float:
        """What is on the device from the first step to the last."""
        return self.weights + self.copies + self.gradients + self.optimizer + min(self.buffers.computing, self.buffers.step)


def optimizer_bytes(weights: Weights, optimizer: Options) -> float:
    """State of one whole copy; of an optimizer that is not ours, as much as AdamW's."""
    return OPTIMIZERS.get(str(optimizer["_target_"]), _two_moments)(weights, optimizer)


def states_of(weights: Weights, optimizer: Options, sharding: Sharding, group: Group, *, offload: bool, together: int = 1) -> States:
    """What a device keeps. Frozen copies are cut as the policy's weights are. together: devices that share each micro-batch; what lies
    outside the layers is the same on all of them."""
    everything = float(weights.trained_bytes + weights.frozen_bytes)
    parts = group.devices / (1 + (together - 1) * weights.outside / everything)
    model = everything / (parts if sharding.weights else 1)
    frozen = float(group.copies * weights.packed_bytes) / (parts if sharding.weights else 1)
    gradients = float(weights.trained_bytes) / (parts if sharding.gradients else 1)
    whole = MASTER * weights.trained if sharding.master else optimizer_bytes(weights, optimizer)
    state = float(whole) / (parts if sharding.optimizer else 1)
    sizes = {"weights": model, "gradients": gradients, "optimizer": state}
    away = sharding.host if offload else frozenset()
    here = {name: 0.0 if name in away else size for name, size in sizes.items()}
    host = sum(sizes[name] for name in away)
    return States(here["weights"], frozen, here["gradients"], here["optimizer"], sharding.buffers(weights, group), host)
