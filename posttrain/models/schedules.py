"""Learning-rate schedules: a factor on the optimizer's lr for step 0, 1, ... max_steps - 1.

All warm up linearly: with w warm-up steps the factor of step s < w is (s + 1) / w, so the first step already learns.
`warmup` counts steps (an integer from 1) or is a fraction of the run below 1; 0 is no warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from posttrain.errors import ConfigError, Problem

FRACTION_DIGITS = 6  # of a fraction times the steps: 0.07 * 100 is 7, not 7.000000000000001


def cosine(optimizer: Optimizer, max_steps: int, *, warmup: int | float = 0, min_ratio: float = 0.0) -> LambdaLR:
    """Warm-up, then half a cosine from 1 down to `min_ratio` at `max_steps`."""
    return LambdaLR(optimizer, cosine_factor(max_steps, warmup=warmup, min_ratio=min_ratio))


def linear(optimizer: Optimizer, max_steps: int, *, warmup: int | float = 0, min_ratio: float = 0.0) -> LambdaLR:
    """Warm-up, then a straight line from 1 down to `min_ratio` at `max_steps`."""
    return LambdaLR(optimizer, linear_factor(max_steps, warmup=warmup, min_ratio=min_ratio))


def constant(optimizer: Optimizer, max_steps: int, *, warmup: int | float = 0) -> LambdaLR:
    """Warm-up, then 1."""
    return LambdaLR(optimizer, constant_factor(max_steps, warmup=warmup))


def wsd(
    optimizer: Optimizer,
    max_steps: int,
    *,
    warmup: int | float = 0,
    decay: int | float = 0.2,
    min_ratio: float = 0.0,
    shape: Literal["sqrt", "linear"] = "sqrt",
) -> LambdaLR:
    """Warm-up, stable at 1, decay to `min_ratio` over the last `decay` steps or fraction (Hu et al., 2024, arXiv 2404.06395).

    shape: `sqrt` falls as 1 - sqrt(progress) (Haegele et al., 2024, arXiv 2405.18392), `linear` as 1 - progress.
    """
    return LambdaLR(optimizer, wsd_factor(max_steps, warmup=warmup, decay=decay, min_ratio=min_ratio, shape=shape))


def steps_of(length: int | float, max_steps: int, *, key: str) -> int:
    """Steps of a length given as steps or as a fraction of the run, rounded up. Raises ConfigError for a negative or broken number."""
    if length < 0 or (length > 1 and length != int(length)):
        raise ConfigError(Problem(key, f"is {length}", "a whole number of steps from 1, or a fraction of the run below 1"))
    return math.ceil(round(length * max_steps, FRACTION_DIGITS)) if length < 1 else int(length)


def constant_factor(max_steps: int, *, warmup: int | float) -> Callable[[int], float]:
    """The factor of each step under `constant`."""
    rise = steps_of(warmup, max_steps, key="scheduler.warmup")
    return lambda step: min(1.0, (step + 1) / max(1, rise))


def cosine_factor(max_steps: int, *, warmup: int | float, min_ratio: float) -> Callable[[int], float]:
    """The factor of each step under `cosine`."""
    return _falling(max_steps, warmup, min_ratio, lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)))


def linear_factor(max_steps: int, *, warmup: int | float, min_ratio: float) -> Callable[[int], float]:
    """The factor of each step under `linear`."""
    return _falling(max_steps, warmup, min_ratio, lambda progress: 1.0 - progress)


def _falling(max_steps: int, warmup: int | float, min_ratio: float, curve: Callable[[float], float]) -> Callable[[int], float]:
    rise = steps_of(warmup, max_steps, key="scheduler.warmup")

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        progress = min(1.0, (step - rise) / max(1, max_steps - rise))
        return min_ratio + (1.0 - min_ratio) * curve(progress)

    return factor


def wsd_factor(max_steps: int, *, warmup: int | float, decay: int | float, min_ratio: float, shape: str) -> Callable[[int], float]:
    """The factor of each step under `wsd`. Raises ConfigError when warm-up and decay together are longer than the run."""
    rise = steps_of(warmup, max_steps, key="scheduler.warmup")
    fall = steps_of(decay, max_steps, key="scheduler.decay")
    if rise + fall > max_steps:
        message = f"{rise} warm-up steps and {fall} decay steps do not fit into {max_steps} steps"
        raise ConfigError(Problem("scheduler", message, "shorten them, or give fractions"))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        progress = min(1.0, max(0.0, (step - (max_steps - fall)) / max(1, fall)))
        fallen = math.sqrt(progress) if shape == "sqrt" else progress
        return min_ratio + (1.0 - min_ratio) * (1.0 - fallen)

    return factor
