"""The keys of `model.peft`: which adapters, on what, and how their base is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import field
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from posttrain.errors import ConfigError, Problem

ALL_LINEAR = "all-linear"


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PeftOptions:
    """The keys of `model.peft`.

    kind: `lora` (arXiv 2106.09685), `dora` (2402.09353), `rslora` (2312.03732: scale alpha / sqrt(r)), `pissa` (2404.02948: starts
        from the leading singular vectors of the weights, which moves them out of the base).
    targets: `all-linear`, or endings of module names. target_parameters: endings of fused expert tensors; `auto`: all of them when
        targets is all-linear, none otherwise.
    modules_to_save: endings of modules that are trained in full and saved with the adapter.
    quantise: how the frozen base is kept, see `quantisation.quantise`.
    """

    kind: Literal["lora", "dora", "rslora", "pissa"]
    r: int = 16
    alpha: float = 32
    dropout: float = 0.0
    targets: Literal["all-linear"] | list[str] = "all-linear"
    target_parameters: Literal["auto"] | list[str] = "auto"
    modules_to_save: list[str] = field(default_factory=list)
    quantise: Literal["nf4", "int8"] | None = None
    double_quantise: bool = True
    outlier_threshold: float = 6.0
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"


def peft_options(peft: Mapping[str, Any]) -> PeftOptions:
    """Check the keys, types and values of `model.peft`. Raises ConfigError with every problem."""
    try:
        options = TypeAdapter(PeftOptions).validate_python(dict(peft))
    except ValidationError as error:
        raise ConfigError([_problem(detail) for detail in error.errors()]) from error
    if problems := [*_out_of_range(options), *_without_effect(options)]:
        raise ConfigError(problems)
    return options


def _out_of_range(options: PeftOptions) -> Iterator[Problem]:
    """Values that train nothing, or something else than what they say."""
    ranges = {
        "r": (options.r >= 1, "at least 1"),
        "alpha": (0 < options.alpha < math.inf, "above 0"),
        "dropout": (0 <= options.dropout < 1, "at least 0 and below 1"),
        "outlier_threshold": (options.outlier_threshold >= 0, "at least 0 (0: no outliers are kept)"),
    }
    for key, (fits, expected) in ranges.items():
        if not fits:
            yield Problem(f"model.peft.{key}", f"expected a number {expected}, got {getattr(options, key)!r}")
    if options.targets == [] and options.target_parameters in ("auto", []):
        yield Problem("model.peft.targets", "nothing would have adapters", f"targets={ALL_LINEAR}, or model.peft=null")


def _without_effect(options: PeftOptions) -> Iterator[Problem]:
    """Keys of a kind of quantisation that is not chosen, set to anything but their defaults."""
    belongs = {"double_quantise": "nf4", "compute_dtype": "nf4", "outlier_threshold": "int8"}
    for key, kind in belongs.items():
        default = PeftOptions.__dataclass_fields__[key].default
        if options.quantise != kind and getattr(options, key) != default:
            message = f"has no effect with quantise={options.quantise or 'null'}: it belongs to {kind}"
            yield Problem(f"model.peft.{key}", message, f"leave it out, or model.peft.quantise={kind}")


def _problem(detail: Any) -> Problem:
    key = ".".join(str(part) for part in detail["loc"])
    close = get_close_matches(key, list(PeftOptions.__dataclass_fields__), n=1)
    hint = f"did you mean {close[0]}?" if close and close[0] != key else ""
    return Problem(f"model.peft.{key}", f"{detail['msg']}, got {detail['input']!r}", hint)
