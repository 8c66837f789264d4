"""What the references in make_policy.py and policy_peers.py are called with, and what is kept of a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NAN = float("nan")
LENGTHS = [6, 3, 1, 5]  # tokens of each answer, what a tool returned included


def numbers(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def drawn(*shape: int, seed: int, scale: float) -> Tensor:
    """Normal numbers with two decimals."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale * 100).round() / 100


def inputs() -> dict[str, Tensor]:
    """Four answers of up to six tokens [B, T]; every ratio from far below to far above 1, two tokens that a tool returned."""
    B, T = len(LENGTHS), max(LENGTHS)
    logps = -drawn(B, T, seed=1, scale=1.5).abs() - 0.25
    old = logps + drawn(B, T, seed=2, scale=0.6)
    old[1, 1], old[3, 0] = logps[1, 1] - 1.75, logps[3, 0] + 1.5  # a ratio of 5.75 where A < 0
    there = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
    mask = there.double()
    mask[0, 2], mask[0, 3] = 0.0, 0.0
    return {
        "logps": logps,
        "old": old,
        "reference": logps + drawn(B, T, seed=3, scale=0.8),
        "sampler": old + drawn(B, T, seed=4, scale=0.5),
        "advantages": numbers([1.25, -0.75, 0.5, -1.5]),
        "token_advantages": drawn(B, T, seed=5, scale=1.0),
        "there": there.double(),
        "mask": mask,
        "weights": (1 + drawn(B, T, seed=6, scale=0.3)).clamp(min=0.05),
        "scores": numbers([1.5, -0.5, 2.0, 0.25]),
        "values": drawn(B, T, seed=7, scale=1.0),
        "old_values": drawn(B, T, seed=8, scale=1.0),
        "returns": drawn(B, T, seed=9, scale=1.0),
    }


def rewards() -> dict[str, Tensor]:
    """Two components of five prompts with four answers each, [2, 5, 4], and their weights; one group without variance, one with gaps."""
    first = [[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.5, NAN, 1.0, 0.0], [NAN, 1.0, NAN, NAN]]
    second = [[0.25, 0.5, -1.0, 0.75], [2.0, 1.0, 0.0, 0.5], [0.5, 0.5, 0.5, 0.5], [1.0, NAN, NAN, 0.25], [NAN, 0.5, NAN, NAN]]
    return {"parts": numbers([first, second]), "weights_of_parts": numbers([1.0, 0.5])}


def graded(loss: Callable[[Tensor], Tensor], logps: Tensor) -> dict[str, Any]:
    """A loss and its gradient, [B, T]."""
    logps = logps.clone().requires_grad_()
    found = loss(logps)
    found.backward()
    assert logps.grad is not None
    return {"loss": found.item(), "gradient": logps.grad.tolist()}
