"""Rules about the machine that a run needs; `rules` says where each holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from posttrain.errors import Problem
from posttrain.runs import machine

Config = dict[str, Any]


def machines_are_one(config: Config) -> Iterator[Problem]:
    """Several machines are a cluster's to start."""
    hardware = config["hardware"]
    if hardware["nodes"] > 1:
        hint = f"posttrain -m hardware={hardware['name']} hydra/launcher=slurm ... (on a cluster); posttrain plan ... works anywhere"
        yield Problem("hardware.nodes", f"several machines ({hardware['nodes']}) need a cluster", hint)


def entering_is_on_one_machine(config: Config) -> Iterator[Problem]:
    """The run that is made first is made by the leading task alone, on its own machine."""
    if config["entering"] and config["hardware"]["nodes"] > 1:
        message = f"a run that is made first cannot use several machines ({config['hardware']['nodes']})"
        yield Problem("entering", message, "make it by itself, then model.path=ITS_OUTPUT_DIR/artifact")


def devices_are_there(config: Config) -> Iterator[Problem]:
    """The devices asked for must be in this machine. Several machines are a problem of their own."""
    return devices_are_on_this_node(config) if config["hardware"]["nodes"] == 1 else iter(())


def devices_are_on_this_node(config: Config) -> Iterator[Problem]:
    """A node's devices must be in this machine."""
    hardware = config["hardware"]
    name, asked = hardware["name"], hardware["devices"]
    plan = f"posttrain plan hardware={name} ... (what it would take)"
    cluster = f"posttrain -m hardware={name} hydra/launcher=slurm ... (on a cluster)"
    if hardware["accelerator"] != "cuda":
        return
    there = machine.usable_gpus()
    if there < asked:
        reason = "" if machine.torch_has_cuda() else ", and the installed torch is a CPU build"
        yield Problem(
            "hardware.devices",
            f"hardware={name} needs {_gpus(asked)}, this machine has {there or 'none'}{reason}",
            f"here: hardware=auto; or {plan}; or {cluster}",
        )


def _gpus(count: int) -> str:
    return "1 CUDA device" if count == 1 else f"{count} CUDA devices"
