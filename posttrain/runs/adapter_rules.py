"""Rules about adapters that need no model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.models.peft_options import peft_options


def adapters_are_possible(config: dict[str, Any]) -> Iterator[Problem]:
    """Values of `model.peft` that no model could be given, and keys that would have no effect."""
    if config["model"].get("peft") is None:
        return
    try:
        peft_options(config["model"]["peft"])
    except ConfigError as error:
        yield from error.problems
