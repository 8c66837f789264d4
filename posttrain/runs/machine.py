"""What this machine has, found out without importing torch."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Facts = dict[str, str]


def gpu_count(device_folder: Path = Path("/dev")) -> int:
    """NVIDIA GPUs whose device files this process can see; 0 if CUDA_VISIBLE_DEVICES hides them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return 0
    files = [file for file in device_folder.glob("nvidia*") if re.fullmatch(r"nvidia\d+", file.name)]
    return len(files) if visible is None else min(len(files), len(visible.split(",")))


def torch_has_cuda() -> bool:
    """Whether the installed torch is a CUDA build, as its version file says."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    return re.search(r"^cuda\b[^=]*=\s*['\"]", version, re.MULTILINE) is not None


def facts() -> Facts:
    """Accelerator, precision and backend of `hardware=auto`."""
    if gpu_count() > 0 and torch_has_cuda():
        return {"accelerator": "cuda", "precision": "bf16", "backend": "nccl"}
    return {"accelerator": "cpu", "precision": "float32", "backend": "gloo"}


def request(what: str, hardware: Mapping[str, Any]) -> int | None:
    """What a cluster job asks for to get this hardware: `cpus` (a node), `gpus` (a node), `memory` (a node, GiB; None: what the cluster
    gives) or `minutes` (a day if there is no time limit)."""
    devices = hardware["devices"]
    cuda = hardware["accelerator"] == "cuda"
    memory = hardware["node_memory_gb"] or (devices * hardware["memory_gb"] if cuda and hardware["memory_gb"] else None)
    amounts = {
        "cpus": devices * hardware["cpus_per_device"],
        "gpus": devices if cuda else 0,
        "memory": None if memory is None else math.ceil(memory),
        "minutes": math.ceil(60 * (hardware["time_limit"] or 24)),
    }
    return amounts[what]


def usable_gpus() -> int:
    """CUDA devices torch can use. torch is imported only where driver files and a CUDA build say that there may be one."""
    if gpu_count() == 0 or not torch_has_cuda():
        return 0
    import torch

    return torch.cuda.device_count()
