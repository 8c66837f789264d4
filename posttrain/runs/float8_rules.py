"""Rules about matrix products in 8-bit floats (`model.float8`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from posttrain.errors import MissingExtra, Problem
from posttrain.runs.source import class_constant

Config = Mapping[str, Any]

LEAST = (8, 9)  # compute capability of the first CUDA devices with 8-bit products
OFF = "model.float8=null"
DEVICES = Path(__file__).with_name("planning") / "devices.yaml"


def torchao_is_there(config: Config) -> Iterator[Problem]:
    """8-bit products need the package torchao."""
    if config["model"].get("float8") and find_spec("torchao") is None:
        yield from MissingExtra("model.float8", "quant").problems


def float8_fits(config: Config) -> Iterator[Problem]:
    """The weights, the device and the precision must have such products. What this machine's device has is the preflight's to find."""
    model, hardware = config["model"], config["hardware"]
    if not model.get("float8"):
        return
    if quantised := (model.get("peft") or {}).get("quantise"):
        message = f"weights in {quantised} are multiplied by kernels of their own"
        yield Problem("model.float8", message, f"{OFF}, or model/peft=lora")
    if hardware["accelerator"] == "cpu" and config["precision"] == "bf16":
        message = "torchao's emulation on the CPU does not see that bfloat16 arithmetic is asked for"
        yield Problem("precision", message, "precision=float32 or bf16_true")
    if hardware["accelerator"] == "cuda" and config["precision"] == "float32":
        yield Problem("precision", "8-bit products on CUDA come out in bfloat16", f"precision=bf16, or {OFF}")
    name = hardware["device_name"]
    capability = yaml.safe_load(DEVICES.read_text(encoding="utf-8")).get(name, {}).get("capability")
    if capability is not None and tuple(map(int, str(capability).split("."))) < LEAST:
        yield too_old(name, str(capability))


def too_old(name: str, capability: str) -> Problem:
    """A CUDA device without 8-bit products."""
    message = f"{name} has compute capability {capability}, and 8-bit products begin with {'.'.join(map(str, LEAST))}"
    return Problem("model.float8", message, f"{OFF}, or a newer device such as hardware=1xh100")


def float8_agrees(config: Config) -> Iterator[Problem]:
    """Log-probabilities that are compared must come from the same micro-batch.

    A difference in the last bit, as between a batch and another, tips some activations to the neighbouring 8-bit float, and the layers
    after them see it: measured on a small model, 0.0005 nats a token on average between sampler and trainer (rowwise, float32), 0.04 in
    bfloat16 (0.007 without 8-bit products), 0.07 tensorwise, where the scale itself is another.
    """
    method = config["method"]
    if not config["model"].get("float8"):
        return
    if class_constant(method.get("_target_", ""), "online") is True:
        message = (
            "an answer's log-probabilities in 8 bits depend on what is computed beside it, so that the sampler's are not the trainer's"
        )
        yield Problem("model.float8", message, OFF)
    if method.get("reference") == "cached":
        message = "log-probabilities in 8 bits depend on the micro-batch, and cached ones come from another"
        yield Problem("model.float8", message, f"method.reference=copy, or {OFF}")
