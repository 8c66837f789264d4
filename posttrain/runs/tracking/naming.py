"""Config and metrics in the form MLflow takes: flat, short enough, with legal names. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MAX_KEY = 250
MAX_PARAM = 6000
ILLEGAL = re.compile(r"[^\w\-. /:]")


def legal(key: str) -> str:
    """`key` with characters that MLflow refuses replaced by ``_`` and cut to 250 characters, keeping the end."""
    return ILLEGAL.sub("_", key)[-MAX_KEY:]


def flatten(config: Mapping[str, Any]) -> dict[str, str]:
    """Nested config to ``{"optimizer.lr": "0.001"}``. Lists of plain values stay one JSON value; values are cut to 6000 characters."""
    return {legal(key): text[:MAX_PARAM] for key, text in _leaves("", config)}


def _leaves(prefix: str, node: Any) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(f"{prefix}.{key}" if prefix else str(key), value)
    elif _holds_mappings(node):
        for index, value in enumerate(node):
            yield from _leaves(f"{prefix}.{index}", value)
    else:
        yield prefix, node if isinstance(node, str) else json.dumps(node, default=str)


def _holds_mappings(node: Any) -> bool:
    return isinstance(node, Sequence) and not isinstance(node, str) and any(isinstance(item, Mapping) for item in node)


def metric_name(key: str) -> str:
    """``loss`` -> ``train/loss``; names under ``val/``, ``eval/`` and ``system/`` stay."""
    return legal(key if key.startswith(("val/", "eval/", "system/")) else f"train/{key}")


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """`items` in order, in pieces of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
