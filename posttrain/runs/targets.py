"""What a config may name in `_target_`. A config is data: it chooses among these functions and classes and can call nothing else."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from functools import partial
from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.runs import source, suggest
from posttrain.runs.signatures import RESERVED, read_signature

_NAMED = {
    "torch.optim": ("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "LBFGS", "Muon", "NAdam", "RAdam", "RMSprop", "SGD"),
    "torch.optim.lr_scheduler": ("ConstantLR", "CosineAnnealingLR", "ExponentialLR", "LinearLR", "OneCycleLR", "PolynomialLR", "StepLR"),
    "torch.nn": ("GELU", "Identity", "ReLU", "SiLU", "Tanh"),
    "lightning.pytorch.callbacks": ("DeviceStatsMonitor", "EarlyStopping", "LearningRateMonitor", "Timer", "WeightAveraging"),
    "transformers": ("BitsAndBytesConfig", "TorchAoConfig"),
    "peft": ("AdaLoraConfig", "IA3Config", "LoraConfig", "OFTConfig", "VeraConfig"),
    "bitsandbytes.optim": ("AdEMAMix8bit", "Adam8bit", "AdamW8bit", "Lion8bit", "PagedAdam8bit", "PagedAdamW8bit", "SGD8bit"),
    "torchao.optim": ("Adam4bit", "Adam8bit", "AdamFp8", "AdamW4bit", "AdamW8bit", "AdamWFp8"),
}
ALLOWED = frozenset(f"{module}.{name}" for module, names in _NAMED.items() for name in names)


def allowed(target: str, allow: Collection[str] = ()) -> bool:
    """Whether `target` may be named: this package, a listed class, or something in a package the user trusts (`allow`)."""
    return target in ALLOWED or any(target.startswith(f"{package}.") for package in (source.PACKAGE, *allow))


def refusal(target: object, path: str, allow: Collection[str] = ()) -> Problem | None:
    """The problem with a target that is not on the allow-list, or None."""
    if isinstance(target, str) and allowed(target, allow):
        return None
    if not isinstance(target, str):
        return Problem(path, f"expected a dotted name, got {target!r}")
    head = target.split(".")[0]
    return Problem(path, f"{target} is not on the list of things a config may call", f"if you trust it: --allow-target {head}")


def unknown(target: str, path: str) -> Problem:
    """The problem with an allowed target that does not exist."""
    module = target.rpartition(".")[0]
    return Problem(path, f"there is no function or class {target}", suggest.hint(target, source.public_names(module)))


def build(node: dict[str, Any], *inputs: Any, allow: Collection[str] = ()) -> Any:
    """Calls the node's target with the runtime `inputs` and the node's keys; nodes inside it are built first.

    With `_partial_: true` the result is a `functools.partial` that still takes its inputs.

    Raises:
        ConfigError: the target is not on the allow-list, or does not exist.
    """
    target = node["_target_"]
    problem = refusal(target, "_target_", allow)
    if problem is not None:
        raise ConfigError(problem)
    function = _load(target)
    keywords = {key: _built(value, allow) for key, value in node.items() if key not in RESERVED and not _is_label(key, target)}
    return partial(function, *inputs, **keywords) if node.get("_partial_") else function(*inputs, **keywords)


def _is_label(key: str, target: str) -> bool:
    """Whether the key is the option's own name, kept for reading, and no parameter."""
    signature = read_signature(target)
    return key == "name" and signature is not None and key not in signature.parameters


def _built(value: Any, allow: Collection[str]) -> Any:
    if isinstance(value, list):
        return [_built(item, allow) for item in value]
    if isinstance(value, dict):
        return build(value, allow=allow) if "_target_" in value else {key: _built(item, allow) for key, item in value.items()}
    return value


def _load(target: str) -> Any:
    """The function or class itself; in this package only what is defined there, never a module it imports."""
    module_name, _, attribute = target.rpartition(".")
    if target.split(".", maxsplit=1)[0] == source.PACKAGE and source.locate(target) is None:
        raise ConfigError(unknown(target, "_target_"))
    return vars(importlib.import_module(module_name))[attribute]
