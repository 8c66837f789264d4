"""What to change where a run does not fit, in the order in which it is worth trying, with the memory that each would take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from posttrain.runs.planning.estimate import Estimate
from posttrain.runs.planning.memory import REFERENCE, Setup, most_tokens, peak_of
from posttrain.runs.planning.shapes import ModelShape, Row
from posttrain.runs.planning.strategies import SHARDINGS

Config = Mapping[str, Any]
ENOUGH = 2  # listed at least, and no further than to what fits
Change = Callable[[ModelShape, Setup], tuple[ModelShape, Setup]]


@dataclass(frozen=True)
class Remedy:
    """override: what to write. alone: bytes with this change only; together: with those before it as well. fits: which of them do."""

    override: str
    alone: float
    together: float
    fits_alone: bool
    fits_together: bool


def remedies(config: Config, found: Estimate, adapted: Callable[[str], ModelShape], larger: Mapping[str, int]) -> list[Remedy]:
    """Changes to a plan that does not fit. adapted: the model's shape with an option of model/peft. larger: shapes of the same device with
    more of them, name -> devices."""
    assert found.capacity is not None
    model, setup = found.model, found.setup
    listed: list[Remedy] = []
    for override, change in _changes(config, found, adapted, larger):
        alone = peak_of(*change(found.model, found.setup)).total
        model, setup = change(model, setup)
        together = peak_of(model, setup).total
        listed.append(Remedy(override, alone, together, alone <= found.capacity, together <= found.capacity))
        if len(listed) >= ENOUGH and listed[-1].fits_together:
            break
    return listed


def _changes(
    config: Config, found: Estimate, adapted: Callable[[str], ModelShape], larger: Mapping[str, int]
) -> Iterator[tuple[str, Change]]:  # fmt: skip
    setup, hardware, peft = found.setup, config["hardware"], config["model"].get("peft")
    assert found.capacity is not None
    if found.peak.name == REFERENCE and SHARDINGS[setup.strategy].weights:
        yield "method.reference=copy", _set(cached=False, copies=setup.copies + 1)
    if not setup.checkpointing:
        yield "model.gradient_checkpointing=true", _set(checkpointing=True)
    if setup.row.tokens > setup.row.longest_path:
        tokens = max(most_tokens(found.model, setup, found.capacity), setup.row.longest_path)
        yield f"max_tokens={tokens}", _shorter(tokens)
    if setup.devices > 1 and setup.strategy not in ("fsdp2", "zero3"):
        yield "hardware.strategy=fsdp2", _set(strategy="fsdp2")
    if "offload" in hardware and not setup.offload and setup.devices > 1:
        yield "hardware.offload=true", _set(offload=True)
    options = ["lora", "qlora"] if peft is None else ["qlora"] if peft.get("quantise") is None else []
    for option in options:
        yield f"model/peft={option}", _model(adapted(option))
    for name, devices in larger.items():
        yield f"hardware={name}", _set(devices=devices, strategy="fsdp2")


def _set(**values: Any) -> Change:
    return lambda model, setup: (model, replace(setup, **values))


def _model(other: ModelShape) -> Change:
    """Adapters on whole weights: no frozen copy is needed beside them, and quantised weights are not cut."""
    return lambda _, setup: (other, replace(setup, copies=0))


def _shorter(tokens: int) -> Change:
    def change(model: ModelShape, setup: Setup) -> tuple[ModelShape, Setup]:
        row: Row = setup.row.times(min(1.0, tokens / setup.row.tokens))
        return model, replace(setup, row=row, several=True)

    return change
