"""What each strategy keeps on a device, and what it needs for talking to the other devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from posttrain.runs.planning.shapes import Weights

FLOAT = 4
MASTER = 12  # bytes a trained weight in DeepSpeed's optimizer: a float32 copy and two moments
# DeepSpeed's defaults, in elements: of a bucket of gradients; of weights fetched ahead; of weights that pass by between a layer's forward
# and its backward pass, forth and back, below which the layer stays gathered.
BUCKET, AHEAD, REUSED = 500_000_000, 50_000_000, 1_000_000_000


@dataclass(frozen=True)
class Buffers:
    """Bytes beside the states. computing: in forward and backward passes. last: on top of that where a backward pass's last gradients are
    reduced. step: while the optimizer steps. sampling: while answers are sampled."""

    computing: float = 0.0
    last: float = 0.0
    step: float = 0.0
    sampling: float = 0.0


@dataclass(frozen=True)
class Group:
    """The devices. gpus: whether they are. half: whether layers are gathered in 16 bits. copies: frozen models beside the policy."""

    devices: int
    gpus: bool = False
    half: bool = False
    copies: int = 0


@dataclass(frozen=True)
class Sharding:
    """Which of a model's states are cut into as many parts as there are devices. words: what it does. buffers: what it needs beside them.
    master: whether its optimizer works on a float32 copy of its own. host: what `hardware.offload` moves to the host's memory. narrow:
    whether layers are gathered in the type that they compute in, so that autocast keeps no copy of them. enters_whole: whether weights lie
    on every device before they are cut."""

    words: str
    weights: bool
    gradients: bool
    optimizer: bool
    buffers: Callable[[Weights, Group], Buffers]
    master: bool = False
    host: frozenset[str] = frozenset()
    narrow: bool = False
    enters_whole: bool = False


def _none(weights: Weights, group: Group) -> Buffers:
    return Buffers()


def _ddp(weights: Weights, group: Group) -> Buffers:
    """Gradients once more, in the buckets in which they are summed over the devices."""
    size = float(weights.trained_bytes) if group.devices > 1 else 0.0
    return Buffers(size, 0.0, size, size)


def _fsdp2(weights: Weights, group: Group) -> Buffers:
    """Two layers and what lies outside the layers, whole, and the gradients of one of these layers before they are cut: as they come, and
    in float32 where they come in 16 bits. Sampling gathers all layers, once a rollout."""
    narrow = 0.5 if group.half and weights.trained_bytes == FLOAT * weights.trained else 1.0
    layer = narrow * weights.largest_layer
    gradient = 0.0 if weights.frozen else layer + (weights.largest_layer if narrow < 1 else 0) + weights.outside
    whole = narrow * (weights.trained_bytes + weights.frozen_bytes - weights.outside) + weights.outside
    return Buffers(2 * layer + weights.outside + gradient, 0.0, 0.0, whole)


def _zero2(weights: Weights, group: Group) -> Buffers:
    """`DeepSpeedZeroOptimizer` (stage_1_and_2.py): while there are gradients to come, a bucket of fixed size (`setup_buckets`), two where
    sending overlaps with computing, as on a GPU; a CPU has only as much of it as was written. What is in it is copied to be summed
    (`allreduce_bucket`). The step needs its gradients flat."""
    filled = FLOAT * min(BUCKET, weights.trained)
    bucket = 2.0 * FLOAT * BUCKET if group.gpus else 0.0
    return Buffers(bucket, filled if group.gpus else 2 * filled, FLOAT * weights.trained / group.devices)


def _zero3(weights: Weights, group: Group) -> Buffers:
    """`DeepSpeedZeroOptimizer_Stage3` (stage3.py): a bucket of fixed size for good (`_setup_for_real_optimizer`), of which a CPU has only
    what was written once. What is in it is laid out anew to be summed (`reduce_scatter_coalesced`), and gloo sums in a copy. Weights stay
    gathered until they are not needed for a while (`__params_to_release`): in models of less than half of REUSED, from their forward
    to their backward pass. The step needs its gradients flat."""
    every = (1 + group.copies) * (weights.trained + weights.frozen)
    live = FLOAT * min(every, REUSED // 2 + AHEAD)
    filled = FLOAT * min(BUCKET, weights.trained)
    bucket = float(FLOAT * BUCKET if group.gpus else filled)
    last = filled if group.gpus else 2 * filled
    flat, whole = FLOAT * weights.trained / group.devices, weights.trained_bytes + weights.frozen_bytes
    return Buffers(bucket + live, last, bucket + flat, bucket + whole)


EVERYTHING = frozenset({"weights", "gradients", "optimizer"})
SHARDINGS = {
    "single": Sharding("everything on one device", False, False, False, _none),
    "ddp": Sharding("a whole copy of everything on every device", False, False, False, _ddp),
    "fsdp2": Sharding(
        "weights, gradients and optimizer state cut over the devices", True, True, True, _fsdp2, host=EVERYTHING, narrow=True
    ),
    "zero1": Sharding("optimizer state cut over the devices", False, False, True, _zero2, True, frozenset({"optimizer"})),
    "zero2": Sharding("optimizer state and gradients cut over the devices", False, True, True, _zero2, True, frozenset({"optimizer"})),
    "zero3": Sharding(
        "weights, gradients and optimizer state cut over the devices", True, True, True, _zero3, True, EVERYTHING, enters_whole=True
    ),
}
