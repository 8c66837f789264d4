"""Where an artifact comes from: the records of the artifacts it was made with, down to the data of the first."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.models.integrity import has_record, read_record

KEPT = ("method", "config_hash", "data", "metrics", "tags", "files")  # of a parent's record


def parents_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The artifacts that a run with this config reads, by what they are to it: policy, value, reward.COMPONENT.

    Each with its folder, what its record says (digests of its data and weights among it), and its own parents. Models that are no
    artifacts of ours are left out.
    """
    named = {"policy": config["model"]["path"] if config["model"]["weights"] == "pretrained" else None}
    named["value"] = config["method"].get("value_from")
    named |= {f"reward.{name}": node.get("path") for name, node in (config.get("reward") or {}).items()}
    folders = {role: Path(os.path.expanduser(path)) for role, path in named.items() if isinstance(path, str)}
    return {role: _parent(folder) for role, folder in folders.items() if has_record(folder)}


def _parent(folder: Path) -> dict[str, Any]:
    record = read_record(folder)
    return {"folder": str(folder), **{key: record[key] for key in KEPT if key in record}, "parents": record.get("parents", {})}
