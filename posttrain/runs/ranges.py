"""Ranges of numbers that several optimizers, schedules and methods share and that their signatures cannot state."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Annotated, Any

from pydantic import Field

from posttrain.errors import Problem
from posttrain.runs.annotations import fits, in_words
from posttrain.runs.schema import Count, Fraction

AtLeastZero = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
AboveOne = Annotated[float, Field(gt=1)]
Flips = Annotated[float, Field(ge=0, lt=0.5)]
Several = Annotated[int, Field(ge=2)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]

RANGES: dict[str, dict[str, Any]] = {
    "optimizer": {"lr": AtLeastZero, "weight_decay": AtLeastZero, "eps": AtLeastZero, "momentum": AtLeastZero, "betas": list[Fraction]},
    "scheduler": {"warmup": AtLeastZero, "decay": AtLeastZero, "min_ratio": Share},
    "method": {
        "label_smoothing": Fraction,
        "z_loss": AtLeastZero,
        "neftune_alpha": AtLeastZero,
        "sft_weight": AtLeastZero,
        "tail_weight": Share,
        "reference_update_every": Count,
        "reference_update_mix": Share,
        "minibatches": Count,
        "rollout_epochs": Count,
        "selection_tries": Count,
        "difficulty_low": Share,
        "difficulty_high": Share,
        "entropy_coef": AtLeastZero,
        "margin": AtLeastZero,
        "gamma": Share,
        "lam": Share,
        "value_coef": AtLeastZero,
        "value_clip": Positive,
        "value_lr": AtLeastZero,
        "missing_end": AtLeastZero,
        "target_kl": Positive,
        "kl_target": Positive,
        "kl_rate": Positive,
    },
    "method.loss": {
        "beta": Positive,
        "label_smoothing": Flips,
        "tau": Positive,
        "desirable_weight": AtLeastZero,
        "undesirable_weight": AtLeastZero,
        "margin_scale": AtLeastZero,
        "centre": AtLeastZero,
        "delta": Positive,
        "clip": Share,
        "clip_high": AtLeastZero,
        "dual_clip": AboveOne,
        "lower": AtLeastZero,
        "upper": Positive,
        "tau_positive": Positive,
        "tau_negative": Positive,
    },
    "method.kl": {"coef": AtLeastZero, "clamp": Positive},
    "rollout": {
        "group_size": Count,
        "max_new_tokens": Count,
        "temperature": AtLeastZero,
        "top_k": Count,
        "top_p": PositiveShare,
        "min_p": Fraction,
        "repetition_penalty": Positive,
    },
    "method.advantage": {"eps": AtLeastZero, "k": Count},
    "method.beta_schedule": {"start": Positive, "end": Positive},
    "method.head": {
        "attribute_share": AtLeastZero,
        "recurrent_share": AtLeastZero,
        "attribute_weight": AtLeastZero,
        "looks": Count,
        "width": Count,
        "quantiles": Several,
    },
}


def numbers_are_in_range(config: dict[str, Any]) -> Iterator[Problem]:
    """Numbers that would only be refused, or silently do harm, once the model is there."""
    for group, ranges in RANGES.items():
        node = reduce(lambda found, name: found.get(name) or {}, group.split("."), config)
        for key, annotation in ranges.items():
            value = node.get(key) if isinstance(node, dict) else None
            if value is not None and not fits(value, annotation):
                yield Problem(f"{group}.{key}", f"expected {in_words(annotation)}, got {value!r}")
