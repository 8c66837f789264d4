"""How fast a device is, and which share of that a run reaches."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

SIZE, TRIES = 1024, 12
# Shares of the matmul rate that training reached: measured on 2 CPU cores (74 % and 83 % in SFT, README, "How fast").
CPU_SHARE, CPU_DECODING_SHARE = 0.7, 0.45
# Measured on one H200 with 1 billion parameters and micro-batches of 8,000 tokens (README, "How fast"); larger models reach more.
GPU_SHARE = 0.2
GPU_BANDWIDTH_SHARE = 0.5  # assumed, not measured: decoding reads every weight once a token
GPU_LAYER_SECONDS = 3.5e-4  # of a decoding step for 128 answers, besides reading weights: small kernels one after the other; measured there


@dataclass(frozen=True)
class Rates:
    """Of one device, with the shares that a run reaches. flops: operations a second of training. decoding: the same of sampling.
    bandwidth: bytes of weights a second that sampling reads. layer: seconds of a decoding step in each layer besides. source: where the
    numbers come from."""

    flops: float
    decoding: float
    bandwidth: float
    layer: float
    source: str


def rates_of(hardware: Mapping[str, Any], precision: str) -> Rates | None:
    """The rates of a hardware shape; None where its device is not in the table and not this machine's CPU."""
    if hardware["accelerator"] == "cpu":
        found = matmul_rate(precision)
        words = f"{found / 1e9:.0f} GFLOP/s in matrix products, measured just now, x {CPU_SHARE} (measured in SFT)"
        return Rates(CPU_SHARE * found, CPU_DECODING_SHARE * found, float("inf"), 0.0, words)
    row = table().get(hardware["device_name"])
    if row is None:
        return None
    peak = float(row["flops"][precision])
    words = f"{peak / 1e12:.0f} TFLOP/s (the maker's) x {GPU_SHARE} (measured with 1 B parameters on an H200; larger models reach more)"
    return Rates(GPU_SHARE * peak, GPU_SHARE * peak, GPU_BANDWIDTH_SHARE * float(row["bandwidth"]), GPU_LAYER_SECONDS, words)


@cache
def table() -> Mapping[str, Any]:
    """devices.yaml."""
    rows: Mapping[str, Any] = yaml.safe_load(Path(__file__).with_name("devices.yaml").read_text(encoding="utf-8"))
    return rows


@cache
def matmul_rate(precision: str) -> float:
    """Operations a second of a matrix product on this CPU, in the type that products have in `precision`: the best of some tries, so that
    what else runs on the machine counts little."""
    kind = torch.float32 if precision == "float32" else torch.bfloat16
    left, right = torch.randn(SIZE, SIZE, dtype=kind), torch.randn(SIZE, SIZE, dtype=kind)
    return 2 * SIZE**3 / min(_seconds(left, right) for _ in range(TRIES))


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    began = time.perf_counter()
    left @ right
    return time.perf_counter() - began
