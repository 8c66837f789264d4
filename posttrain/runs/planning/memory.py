"""Peak memory of one device by phase and component. Everything here is arithmetic on shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from posttrain.functional.head import BLOCK_ELEMENTS, DEVICE_BLOCK_ELEMENTS, KEPT_ELEMENTS
from posttrain.runs.planning import attention
from posttrain.runs.planning.cut import CUTS
from posttrain.runs.planning.sampling import Sampling, sampling_bytes
from posttrain.runs.planning.shapes import AttentionShape, ModelShape, Phase, Row
from posttrain.runs.planning.states import States, states_of
from posttrain.runs.planning.strategies import SHARDINGS, Group

FLOAT = 4
ALLOCATOR = "allocator"
LOADING, SAMPLING, TRAINING, STEP = "loading", "sampling", "forward, backward", "optimizer step"
REFERENCE = "cached reference"


@dataclass(frozen=True)
class Setup:
    """How a model is trained on a device.

    devices: over all nodes. together: of them, that share each micro-batch; the activations that each keeps are counted as if it computed
    alone, which are more. context: of them, that a micro-batch's row is cut over; cut: by which attention. row: the whole micro-batch.
    copies: frozen models beside the policy. cached: whether a reference computes its log-probabilities before training. heads: whether the
    output head is used. several: whether a step has more than one micro-batch a device. packs: whether sampling packs linear layers.
    overhead: bytes that are there before anything of ours (interpreter and libraries, or the CUDA context). slack: share of what comes and
    goes that the allocator holds beyond it.
    """

    precision: str
    accelerator: str
    devices: int
    strategy: str
    offload: bool
    checkpointing: bool
    attention: str
    optimizer: Mapping[str, Any]
    copies: int
    heads: bool
    several: bool
    row: Row
    sampling: Sampling | None
    overhead: float
    slack: float
    together: int = 1
    context: int = 1
    cut: str = "ring"
    packs: bool = False
    cached: bool = False

    @property
    def half(self) -> bool:
        """Whether matrix products run in 16 bits."""
        return self.precision != "float32"

    @property
    def part(self) -> Row:
        """What a device computes of the micro-batch."""
        return self.row if self.context == 1 else self.row.cut(self.context)


def phases_of(model: ModelShape, setup: Setup) -> tuple[Phase, ...]:
    """Every phase of a run with what lies in memory at its worst moment."""
    kept = _states(model, setup)
    found = [_training(model, setup, kept), Phase(STEP, _base(setup, kept, kept.buffers.step))]
    if setup.sampling is not None:
        found.insert(0, _sampling(model, setup, setup.sampling, kept))
    if SHARDINGS[setup.strategy].enters_whole:
        found.insert(0, _loading(model, setup, kept))
    if setup.cached:
        found.insert(0, _reference(model, setup))
    return tuple(_with_slack(phase, setup) for phase in found)


def _states(model: ModelShape, setup: Setup) -> States:
    return states_of(
        model.weights,
        setup.optimizer,
        SHARDINGS[setup.strategy],
        Group(setup.devices, gpus=setup.accelerator == "cuda", half=setup.half, copies=setup.copies),
        offload=setup.offload,
        together=setup.together,
    )  # fmt: skip


def host_bytes(model: ModelShape, setup: Setup) -> float:
    """What `hardware.offload` keeps in main memory for a device."""
    return _states(model, setup).host


def peak_of(model: ModelShape, setup: Setup) -> Phase:
    """The phase that needs most."""
    return max(phases_of(model, setup), key=lambda phase: phase.total)


def most_tokens(model: ModelShape, setup: Setup, capacity: float) -> int:
    """The largest micro-batch, in tokens, with which every phase fits into `capacity` bytes; 0 if none does. The mixture of sequences
    stays as it is."""

    def fits(tokens: int) -> bool:
        return peak_of(model, replace(setup, row=setup.row.times(tokens / setup.row.tokens))).total <= capacity

    low, high = 0, 1 << 24
    while high - low > max(32, low // 64):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _base(setup: Setup, kept: States, communication: float) -> dict[str, float]:
    return {
        "process and libraries" if setup.accelerator == "cpu" else "CUDA context": setup.overhead,
        "weights": kept.weights,
        "frozen copy": kept.copies,
        "gradients": kept.gradients,
        "optimizer state": kept.optimizer,
        "communication": communication,
    }


def _loading(model: ModelShape, setup: Setup, kept: States) -> Phase:
    """DeepSpeed's engine moves the module to its device (`_configure_distributed_model`) before the optimizer cuts it."""
    weights = model.weights
    whole = weights.trained_bytes + weights.frozen_bytes + setup.copies * weights.packed_bytes
    return Phase(
        LOADING, {**_base(setup, kept, 0.0), "weights": whole, "frozen copy": kept.copies, "gradients": 0.0, "optimizer state": 0.0}
    )


def _reference(model: ModelShape, setup: Setup) -> Phase:
    """Before the policy is there, and before ranks are connected: every device has a whole model, whatever cuts the policy."""
    alone = replace(setup, context=1)
    process, weights = "process and libraries" if setup.accelerator == "cpu" else "CUDA context", model.weights
    parts = {process: setup.overhead, "weights": float(weights.packed_bytes), "passing by": recomputed(model, alone)}
    return Phase(REFERENCE, {**parts, "output head": head_bytes(model, alone).block})


def _training(model: ModelShape, setup: Setup, kept: States) -> Phase:
    """The worst of three moments: the end of the forward pass, the head's backward pass, the end of the backward pass.

    Gradients of the step before are let go only when a step's first backward pass begins; the loop runs the forward pass before. On a CPU
    the C library keeps what a backward pass has let go, so that all of it is still there at its end.
    """
    saved, head = activations(model, setup), head_bytes(model, setup) if setup.heads else Head(0, 0, 0)
    base = _base(setup, kept, kept.buffers.computing + _exchanged(model, setup))
    forward = base | {"kept for backward": saved, "output head": head.kept + head.block}
    gradients = base["gradients"] if setup.several else 0.0
    backward = base | {"gradients": gradients, "kept for backward": saved, "output head": head.kept + head.block + head.gradient}
    table = FLOAT * model.vocabulary * model.hidden if model.head_trained else 0
    rest = {"kept for backward": recomputed(model, setup), "output head": table + (head.gradient if model.tied else 0)}
    end = (base | rest) if setup.accelerator == "cuda" else max(forward, backward, key=lambda parts: sum(parts.values()))
    end = end | {"communication": base["communication"] + kept.buffers.last}
    return max((Phase(TRAINING, parts) for parts in (forward, backward, end)), key=lambda phase: phase.total)


def activations(model: ModelShape, setup: Setup) -> float:
    """Bytes kept for the backward pass, the head aside."""
    if setup.checkpointing:
        return _casts(model, setup) + (model.inputs + model.beyond) * setup.part.tokens + recomputed(model, setup)
    return _casts(model, setup) + model.token * setup.part.tokens + _attention(model, setup)


def _casts(model: ModelShape, setup: Setup) -> float:
    """Weights that autocast has cast. Where layers are computed again, only those that it looks up again are kept: of trained weights."""
    if setup.half and SHARDINGS[setup.strategy].narrow:
        return 0.0
    weights = model.weights
    plain = weights.trained + weights.frozen - weights.quantised
    return model.fixed * (weights.trained / plain if setup.checkpointing else 1.0)


def recomputed(model: ModelShape, setup: Setup) -> float:
    """What the costliest layer keeps: alive while its own backward pass runs."""
    return model.layer * setup.part.tokens + _attention(model, setup) / max(len(model.attentions), 1)


def _attention(model: ModelShape, setup: Setup) -> float:
    def kept(shape: AttentionShape, row: Row) -> float:
        return attention.kept(shape, row, attention.backend_of(setup.attention, setup.accelerator, row, shape, half=setup.half))

    def of(shape: AttentionShape) -> float:
        return kept(shape, setup.row) if setup.context == 1 else CUTS[setup.cut].kept(shape, setup.row, setup.context, kept)

    return sum(calls * of(shape) for shape, calls in Counter(model.attentions).items())


def _exchanged(model: ModelShape, setup: Setup) -> float:
    """What the devices of a row have on its way between them, of the attention that has most, and what a C library keeps of it, of all."""
    if setup.context == 1:
        return 0.0
    cut, row, devices = CUTS[setup.cut], setup.row, setup.context
    left = sum(cut.left(shape, row, devices) for shape in model.attentions) if setup.accelerator == "cpu" else 0.0
    return left + max(cut.passing(shape, row, devices) for shape in model.attentions)


@dataclass(frozen=True)
class Head:
    """Bytes of the output head: kept for the backward pass, of one block of logits, of its weight's gradient."""

    kept: float
    block: float
    gradient: float


def head_bytes(model: ModelShape, setup: Setup) -> Head:
    """As `posttrain.functional.head` cuts the vocabulary."""
    targets = max(1, setup.part.targets)
    block = min(BLOCK_ELEMENTS.get(setup.accelerator, DEVICE_BLOCK_ELEMENTS), targets * model.vocabulary)
    logits = min(KEPT_ELEMENTS, targets * model.vocabulary)
    states = targets * model.hidden * (FLOAT if setup.precision != "bf16_true" else 2)
    cast = model.vocabulary * model.hidden * 2 if setup.precision == "bf16" else 0
    gradient = FLOAT * model.vocabulary * model.hidden if model.head_trained else 0
    return Head(states + FLOAT * logits, FLOAT * block + cast, gradient + FLOAT * targets * model.hidden)


def _sampling(model: ModelShape, setup: Setup, sampling: Sampling, kept: States) -> Phase:
    found = sampling_bytes(model, sampling, half=setup.half, packs=setup.packs, casts=setup.precision == "bf16")
    parts = {
        "keys and values": found.cache, "sampled logits": found.passing, "packed weights": found.packed, "weights in 16 bits": found.cast,
    }  # fmt: skip
    return Phase(SAMPLING, _base(setup, kept, kept.buffers.sampling) | parts)


LASTING = {"process and libraries", "CUDA context", "weights", "frozen copy", "gradients", "optimizer state", "communication"}


def _with_slack(phase: Phase, setup: Setup) -> Phase:
    """The allocator's share on what comes and goes; on a GPU, whose allocator keeps all in its pools, on everything but the context."""
    fixed = LASTING if setup.accelerator == "cpu" else {"CUDA context"}
    moving = sum(size for name, size in phase.parts.items() if name not in fixed)
    return Phase(phase.name, {**phase.parts, ALLOCATOR: setup.slack * moving})
