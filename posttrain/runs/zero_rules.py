"""Rules about runs that DeepSpeed's ZeRO spreads over their devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from posttrain.errors import MissingExtra, Problem

Config = Mapping[str, Any]

STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
SHAPED = {"adafactor": "by row and column", "adamw_8bit": "in blocks of whole weights"}  # how an optimizer keeps its moments


def deepspeed_is_there(config: Config) -> Iterator[Problem]:
    """ZeRO needs the package deepspeed."""
    strategy = config["hardware"]["strategy"]
    if strategy in STAGES and find_spec("deepspeed") is None:
        yield from MissingExtra(f"hardware.strategy={strategy}", "deepspeed").problems


def zero_problems(config: Config) -> Iterator[Problem]:
    """What ZeRO cannot cut."""
    hardware, model = config["hardware"], config["model"]
    strategy, quantised = hardware["strategy"], (model.get("peft") or {}).get("quantise")
    if hardware["nodes"] * hardware["devices"] == 1:
        yield Problem("hardware.strategy", f"{strategy} cuts for several devices, and this shape has one", "hardware.strategy=single")
    if quantised:
        message = (
            f"weights in {quantised} are packed with their scales beside them, and {strategy} would cut or exchange them as plain numbers"
        )
        yield Problem("hardware.strategy", message, "hardware.strategy=ddp: a quantised base fits on one device, or model/peft=lora")
    optimizer = config["optimizer"].get("_target_", "").rpartition(".")[2]
    if optimizer in SHAPED:
        message = f"{optimizer} keeps its moments {SHAPED[optimizer]}, and {strategy} gives it flat pieces of many weights at once"
        yield Problem("hardware.strategy", message, "optimizer=adamw (cut over the devices), or hardware.strategy=ddp")
    if config["precision"] == "bf16_true":
        message = f"{strategy} cuts float32 weights, and precision=bf16_true has none"
        yield Problem("precision", message, "precision=bf16 (bfloat16 arithmetic on them), or hardware.strategy=fsdp2")
    if strategy == "zero3" and model.get("compile"):
        message = "a compiled layer does not stop where zero3 fetches the weights of the modules in it"
        yield Problem("model.compile", message, "model.compile=false, or hardware.strategy=fsdp2")
    if strategy == "zero3" and model.get("float8"):
        message = "8-bit layers keep the gathered weights for their backward pass, so that zero3 would let none of them go"
        yield Problem("model.float8", message, "hardware.strategy=fsdp2 or zero2, or model.float8=null")
    if strategy == "zero3" and ((config["rollout"] or {}).get("_target_") or "").endswith(".VLLMGenerator"):
        message = "zero3 has no rank with whole weights to send"
        yield Problem("rollout", message, "rollout=native, hardware.strategy=zero2, or hardware.strategy=fsdp2")
    if hardware["offload"] and hardware["accelerator"] == "cpu":
        yield Problem("hardware.offload", "weights of a run on the CPU lie in host memory already", "hardware.offload=false")
