"""What a stage is made of, as a hash: its config without what cannot change its result, and the content of everything that it reads."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import posttrain
from posttrain.data.readers import is_hub_id
from posttrain.data.settings import read_settings
from posttrain.data.sources import content_digest
from posttrain.models.integrity import RECORD_FILE, has_record, read_record, sha256_of
from posttrain.runs.pipeline.inputs import PLACEHOLDER, entered

DIGITS = 24
# Where a run writes and reports, how often it saves, how it caches: none of it changes what it comes to. Suites that it lacks are measured
# when it is found again.
WITHOUT_EFFECT = (
    "output_dir", "stages_dir", "stages", "study", "tracking", "checkpoint", "resume", "log.samples_every", "evaluation.samples",
    "evaluation.suite", "data.cache_dir", "data.workers", "hardware.time_limit", "hardware.node_memory_gb",
)  # fmt: skip
READ_AS_DATA = ("train", "val", "sources")


def stage_hash(config: Mapping[str, Any], parents: Mapping[str, str]) -> str:
    """The name of a stage's folder in the store: the same for the same computation, wherever and by whichever pipeline it is made.

    config: the stage's own, its inputs not entered. parents: hash of the stage behind each input.
    """
    named = entered(dict(config), {name: f"{PLACEHOLDER}{parent}" for name, parent in parents.items()})
    content = {"posttrain": posttrain.__version__, "config": _by_content(without_effects(named)), "data": data_digests(named["data"])}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:DIGITS]


def without_effects(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without WITHOUT_EFFECT, and without data paths, which their content stands for."""
    kept = _less(config, "", WITHOUT_EFFECT)
    local = all(not is_hub_id(place) for spec in read_settings(config["data"]).train for place in spec.path)
    return _less(kept, "", tuple(f"data.{key}" for key in READ_AS_DATA)) if local else kept


def _less(node: Mapping[str, Any], path: str, dropped: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for key, value in node.items():
        dotted = f"{path}.{key}" if path else str(key)
        if dotted not in dropped:
            found[key] = _less(value, dotted, dropped) if isinstance(value, Mapping) else value
    return found


def data_digests(data: Mapping[str, Any]) -> list[list[Any]]:
    """Name, weight and content of every data source; of one on the hub, where it is."""
    settings = read_settings(data)
    found: list[list[Any]] = []
    for part, specs in (("train", settings.train), ("val", settings.val)):
        for spec in specs:
            hub = any(map(is_hub_id, spec.path))
            identity = [*spec.path, spec.subset, spec.split, spec.revision] if hub else content_digest(spec)
            found.append([part, spec.weight, identity])
    return found


def _by_content(node: Any, key: str = "") -> Any:
    """The same with the content's digest in place of every local path."""
    if isinstance(node, Mapping):
        return {name: _by_content(value, str(name)) for name, value in node.items()}
    if isinstance(node, list):
        return [_by_content(value, key) for value in node]
    if isinstance(node, str) and (key == "path" or "/" in node or node.startswith("~")) and "\n" not in node:
        path = os.path.expanduser(node)
        return digest_of(Path(path)) if os.path.exists(path) else node
    return node


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files; an artifact's weights are known by its record."""
    if path.is_file():
        return sha256_of(path)
    known = read_record(path)["files"] if has_record(path) else {}
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != RECORD_FILE)
    names = {file.relative_to(path).as_posix(): file for file in files}
    parts = {name: known.get(name) or sha256_of(file) for name, file in names.items()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
