"""Rules about runs that cut each micro-batch's row over several devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from posttrain.errors import Problem
from posttrain.runs.source import class_constant

Config = Mapping[str, Any]
KEY = "hardware.context_parallel"
WHOLE_ROWS = f"{KEY}=1"
STRATEGIES = ("auto", "ddp", "fsdp2")


class Own(NamedTuple):
    """The attention of a method that takes no other. also: what model.attention may say of it."""

    how: str
    also: tuple[str, ...]


OWN = {"ring": Own("goes round a ring of devices", ("auto",)), "torch": Own("is FlexAttention's", ("auto", "flex"))}


def rows_can_be_cut(config: Config) -> Iterator[Problem]:
    """Devices, strategy, method and layout must go together with rows that no device has whole. What only the model's family can say,
    `posttrain.models.build` refuses."""
    hardware = config["hardware"]
    size = hardware["context_parallel"]
    if size == 1:
        if hardware["context_method"] is not None:
            yield Problem("hardware.context_method", "rows are not cut, so nothing is exchanged", f"null, or {KEY}=2")
        return
    if hardware["devices"] % size:
        message = f"{size} devices a row do not divide the {hardware['devices']} of a node"
        yield Problem(KEY, message, f"one of {', '.join(map(str, _divisors(hardware['devices'])))}")
    if hardware["strategy"] not in STRATEGIES:
        yield Problem(KEY, f"is not for hardware.strategy={hardware['strategy']}", "hardware.strategy=ddp, hardware.strategy=fsdp2")
    if hardware["tensor_parallel"] > 1:
        yield Problem(KEY, "rows and layers are not known to be cut right at the same time", f"{WHOLE_ROWS}, or hardware.tensor_parallel=1")
    if hardware["context_method"] == "torch" and hardware["accelerator"] == "cpu":
        message = "PyTorch's context parallelism attends by FlexAttention, which has no backward pass on a CPU; its ring takes no mask"
        yield Problem("hardware.context_method", message, "hardware.context_method=ring, hardware.context_method=ulysses")
    yield from _method_problems(config["method"])
    yield from _model_problems(config["model"], hardware["context_method"] or "ring")


def _divisors(devices: int) -> list[int]:
    return [size for size in range(1, devices + 1) if devices % size == 0]


def _method_problems(method: Config) -> Iterator[Problem]:
    name = method.get("name")
    if class_constant(method.get("_target_", ""), "per_token") is not True:
        message = f"method={name} looks at whole answers, which lie on several devices where rows are cut"
        yield Problem(KEY, message, f"{WHOLE_ROWS}, or method=sft, method=pretrain")
    if method.get("neftune_alpha"):
        yield Problem("method.neftune_alpha", "embedding noise goes by the length of whole sequences", f"0.0, or {WHOLE_ROWS}")


def _model_problems(model: Config, method: str) -> Iterator[Problem]:
    if model["layout"] not in ("auto", "tree"):
        yield Problem("model.layout", f"{model['layout']} rows cannot be cut over devices", f"model.layout=auto, or {WHOLE_ROWS}")
    if method in OWN and model["attention"] not in OWN[method].also:
        message = f"{model['attention']} would not be used: attention over a row that is cut {OWN[method].how}"
        yield Problem("model.attention", message, f"model.attention=auto, hardware.context_method=ulysses, or {WHOLE_ROWS}")
    if model.get("float8"):
        message = "8-bit layers scale by whole operands, and a device has a part of the row"
        yield Problem("model.float8", message, f"model.float8=null, or {WHOLE_ROWS}")
