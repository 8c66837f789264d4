"""Up to which length a model's positions mean the same whatever is computed beside a sequence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig


def frequency_bound(config: PreTrainedConfig) -> tuple[int, str] | None:
    """Tokens up to which rotary frequencies are a constant, and the type that has it so; None where they always are.

    transformers takes the frequencies of `longrope` and `dynamic` from the longest sequence of a batch, as soon as that is longer: shorter
    ones beside it are then rotated otherwise than alone.
    """
    text = config.get_text_config()
    bounds = [(bound, str(rope["rope_type"])) for rope in _ropes(text) if (bound := _bound(rope, text)) is not None]
    return min(bounds, default=None)


def _ropes(text: PreTrainedConfig) -> Iterator[Mapping[str, Any]]:
    """The settings of every kind of layer; one where all have the same."""
    found = getattr(text, "rope_parameters", None) or {}
    for rope in [found, *found.values()]:
        if isinstance(rope, Mapping) and "rope_type" in rope:
            yield rope


def _bound(rope: Mapping[str, Any], text: PreTrainedConfig) -> int | None:
    if rope["rope_type"] == "longrope":
        return int(rope["original_max_position_embeddings"])
    return int(text.max_position_embeddings) if "dynamic" in rope["rope_type"] else None
