"""Rules about adapters that need no model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.models.peft_options import peft_options
from posttrain.runs.signatures import read_signature


def adapters_are_possible(config: dict[str, Any]) -> Iterator[Problem]:
    """Values of `model.peft` that no model could be given, and keys that would have no effect."""
    if config["model"].get("peft") is None:
        return
    try:
        peft_options(config["model"]["peft"])
    except ConfigError as error:
        yield from error.problems


def moving_references_are_whole(config: dict[str, Any]) -> Iterator[Problem]:
    """A reference may move a part of the way in weights, but not in the factors of adapters, whose product would be another model."""
    method = config["method"]
    if config["model"].get("peft") is None or not method.get("reference_update_every"):
        return
    signature = read_signature(method.get("_target_", ""))
    known = None if signature is None else signature.parameters.get("reference_update_mix")
    mix = method.get("reference_update_mix", None if known is None else known.default)
    if mix is not None and 0 < mix < 1:
        message = f"{mix} would mix the adapters' factors, and their product is not that mixture of the weights"
        hint = "method.reference_update_mix=1, with which the reference becomes the policy, or model.peft=null"
        yield Problem("method.reference_update_mix", message, hint)
