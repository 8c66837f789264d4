"""A run's plan: from a configuration to memory, time, verdict and what could be changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from posttrain.methods.base import Method
from posttrain.methods.parts.online import Online
from posttrain.models import packed
from posttrain.runs.planning.duration import Duration, duration_of
from posttrain.runs.planning.machine import SLACK, capacity_of
from posttrain.runs.planning.memory import Setup, host_bytes, most_tokens, phases_of
from posttrain.runs.planning.rates import Rates, rates_of
from posttrain.runs.planning.shapes import ModelShape, Phase
from posttrain.runs.planning.workload import Workload, devices_of
from posttrain.runs.strategies import choice_of
from posttrain.runs.strategies.rule import Choice

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Estimate:
    """model: its shape. setup: how it is trained. chosen: the strategy and why. phases: memory by phase. capacity: bytes that a device
    holds, None where unknown. most_tokens: the largest micro-batch that fits. duration: operations and time; rates: what they are
    reckoned with. here: devices of a node."""

    model: ModelShape
    setup: Setup
    chosen: Choice
    phases: tuple[Phase, ...]
    capacity: float | None
    most_tokens: int | None
    duration: Duration
    rates: Rates | None
    here: int

    @property
    def peak(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def main_memory(self) -> tuple[float, float]:
        """Bytes that a node's processes take of its main memory: while loading, when each builds a whole model, and afterwards, of what is
        offloaded."""
        return self.here * self.model.weights.built_bytes * (1 + self.setup.copies), self.here * host_bytes(self.model, self.setup)

    @property
    def fits(self) -> bool | None:
        """Whether the peak fits into the device; None where its size is unknown."""
        return None if self.capacity is None else self.peak.total <= self.capacity


def estimate(config: Config, method: Method, model: ModelShape, work: Workload, *, overhead: float) -> Estimate:
    """The plan of a run. method: untrained. overhead: bytes of a process before a model is there, see `overhead_of`."""
    hardware = config["hardware"]
    capacity = capacity_of(hardware)
    whole = setup_of(config, method, work, overhead)
    chosen = choice_of(config)
    setup = replace(whole, strategy=chosen.name)
    most = None if capacity is None else most_tokens(model, setup, capacity)
    rates = rates_of(hardware, config["precision"])
    return Estimate(
        model, setup, chosen, phases_of(model, setup), capacity, most, _duration(config, method, model, work, rates), rates,
        hardware["devices"],
    )  # fmt: skip


def setup_of(config: Config, method: Method, work: Workload, overhead: float) -> Setup:
    """How a configuration trains, with a whole copy on each device."""
    model, hardware = config["model"], config["hardware"]
    devices = devices_of(config)
    return Setup(
        precision=config["precision"],
        accelerator=hardware["accelerator"],
        devices=devices,
        together=hardware["tensor_parallel"],
        strategy="single" if devices == 1 else "ddp",
        offload=hardware["offload"],
        checkpointing=bool(model.get("gradient_checkpointing")),
        attention=model.get("attention", "auto"),
        optimizer=config["optimizer"],
        copies=method.copies(adapters_off_restore=adapters_off_restore(model.get("peft"))),
        cached=config["method"].get("reference") == "cached",
        heads=method.language_model,
        several=work.micro_batches > 1,
        row=work.row,
        context=hardware["context_parallel"],
        cut=hardware["context_method"] or Setup.cut,
        sampling=work.sampling,
        overhead=overhead,
        slack=SLACK[hardware["accelerator"]],
        packs=hardware["accelerator"] == "cpu" and packed.available(torch.float32 if config["precision"] == "float32" else torch.bfloat16),
    )


def adapters_off_restore(peft: Mapping[str, Any] | None) -> bool:
    """Whether the policy without its adapters is what it began as."""
    if peft is None:
        return False
    from posttrain.models.peft import disabling_restores_base

    return disabling_restores_base(peft)


def _duration(config: Config, method: Method, model: ModelShape, work: Workload, rates: Rates | None) -> Duration:
    online = method if isinstance(method, Online) else None
    accelerator = config["hardware"]["accelerator"]
    ahead = model.flops.ahead and method.knows_slopes and accelerator == "cpu"
    return duration_of(
        replace(model, flops=replace(model.flops, device=accelerator, ahead=ahead)),
        work,
        rates,
        forwards=method.forward_passes,
        passes=0.0 if online is None else online.passes_between,
        per_rollout=1 if online is None else online.rollout_epochs,
        heads=method.language_model,
        devices=devices_of(config),
        checkpointing=bool(config["model"].get("gradient_checkpointing")),
        element=4 if config["precision"] == "float32" else 2,
    )
