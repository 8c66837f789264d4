"""Answers and components for the tests of rewards."""

from __future__ import annotations

from typing import Any

import yaml

from posttrain.runs import options, targets
from posttrain.types import Sample

QUESTION = ({"role": "user", "content": "How much is 2 + 3?"},)


def sample(completion: str, answer: str | None = "5", **fields: Any) -> Sample:
    """One answer to a question."""
    given = {"prompt": QUESTION, "length": len(completion.split()), "finish": "stop", "meta": {}, "group": 0} | fields
    return Sample(completion=completion, answer=answer, **given)


def built(name: str, **keys: Any) -> Any:
    """A component from its YAML file, with keys changed."""
    node = yaml.safe_load((options.config_dir() / "reward" / f"{name}.yaml").read_text(encoding="utf-8"))
    node.pop("defaults", None)
    return targets.build({**node, **keys})
