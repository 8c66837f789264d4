"""What stands between the steps of worked answers: a process reward model must be asked as it was taught."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from posttrain.errors import Problem
from posttrain.runs.source import class_constant
from posttrain.types import Rendering


def separators(data: Mapping[str, Any]) -> dict[str, str]:
    """Of each training source, by the key that a user would write: a source's own `format_options` take the place of those of `data`."""
    shared = data.get("format_options")
    entries = {f"data.sources[{number}]": entry for number, entry in enumerate(data.get("sources") or ())} or {"data": {}}
    options = {place: entry.get("format_options") or shared or {} for place, entry in entries.items()}
    return {f"{place}.format_options.separator": of.get("separator") or Rendering.separator for place, of in options.items()}


def steps_are_parted_alike(config: dict[str, Any]) -> Iterator[Problem]:
    """A reward model of steps keeps one separator, which its training sources must have in common."""
    found = separators(config["data"])
    if class_constant(config["method"].get("_target_", ""), "data_kind") != "steps" or len(set(found.values())) < 2:
        return
    theirs = "; ".join(f"{place}={text!r}" for place, text in found.items())
    yield Problem("data.sources", f"the model is asked with one separator between steps, and these differ: {theirs}", "give all the same")
