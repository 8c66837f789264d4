"""Ranges of numbers of reward components and of their judges' backends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from posttrain.errors import Problem
from posttrain.runs.annotations import fits, in_words
from posttrain.runs.ranges import AtLeastZero, Positive, Share
from posttrain.runs.schema import Count

PACKAGE = "posttrain.rewards."  # parameters of other packages' components may mean something else
COMPONENT: dict[str, Any] = {
    "clip": Positive,
    "timeout": Positive,
    "workers": Count,
    "memory_gb": Positive,
    "cpu": Count,
    "memory": Count,
    "opponents": Count,
    "most": Count,
    "max_new_tokens": Count,
    "max_tokens": Count,
    "cache": Count,
    "target": Count,
    "tolerance": AtLeastZero,
    "ngram": Count,
    "shortest": AtLeastZero,
    "longest": Count,
    "toxic_ratio": Share,
    "least_unique": Share,
    "diacritics": Share,
    "absolute": AtLeastZero,
    "relative": AtLeastZero,
    "step_weight": Share,
}
BACKEND: dict[str, Any] = {
    "temperature": AtLeastZero,
    "max_new_tokens": Count,
    "concurrency": Count,
    "timeout": Positive,
    "retries": AtLeastZero,
    "pause": AtLeastZero,
    "patience": Count,
    "longest_prompt": Count,
    "batch_tokens": Count,
}


def rewards_are_in_range(config: dict[str, Any]) -> Iterator[Problem]:
    """Numbers with which a component cannot start, hangs, or has the same value for every answer."""
    for name, node in (config["reward"] or {}).items():
        yield from _node(f"reward.{name}", node, COMPONENT)
        yield from _node(f"reward.{name}.backend", node.get("backend") if isinstance(node, dict) else None, BACKEND)


def _node(path: str, node: Any, ranges: dict[str, Any]) -> Iterator[Problem]:
    if not isinstance(node, dict) or not str(node.get("_target_")).startswith(PACKAGE):
        return
    for key, annotation in ranges.items():
        value = node.get(key)
        if value is not None and not fits(value, annotation):
            yield Problem(f"{path}.{key}", f"expected {in_words(annotation)}, got {value!r}")
