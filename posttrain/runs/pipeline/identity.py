"""What a stage is made of, as a hash: its config without what cannot change its result, and the content of everything that it reads."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import posttrain
from posttrain.data.readers import is_hub_id
from posttrain.data.settings import SourceSpec, read_settings
from posttrain.data.sources import content_digest
from posttrain.models.integrity import RECORD_FILE, has_record, read_record, sha256_of
from posttrain.rewards.modules import source_of
from posttrain.runs.entering import composed
from posttrain.runs.pipeline.inputs import PLACEHOLDER, entered
from posttrain.runs.targets import allowed

DIGITS = 24
# Where a run writes and reports, how often it saves, how it caches: none of it changes what it comes to. Suites that it lacks are measured
# when it is found again.
WITHOUT_EFFECT = (
    "output_dir", "stages_dir", "stages", "study", "tracking", "checkpoint", "resume", "log.samples_every", "evaluation.samples",
    "evaluation.suite", "data.cache_dir", "data.workers", "method.reference_cache", "rollout.folder", "hardware.time_limit",
    "hardware.node_memory_gb",
)  # fmt: skip
SOURCES = (".py", ".yaml", ".jinja")
ROOMS = ("types", "functional", "data", "models", "rewards", "rollout", "methods")  # of this package, in which numbers are made
READ_AS_DATA = ("data.train", "data.val", "data.sources")
FOLDERS = ("path", "tokenizer", "value_from")  # keys whose value may be a folder of the current one, written without a slash


def stage_hash(config: Mapping[str, Any], parents: Mapping[str, str]) -> str:
    """The name of a stage's folder in the store: the same for the same computation, wherever and by whichever pipeline it is made.

    A function of the user counts by the file it is in, not by what that file imports; this package by the sources of ROOMS.

    config: the stage's own, its inputs not entered. parents: hash of the stage behind each input.
    """
    named = entered(dict(config), {name: f"{PLACEHOLDER}{parent}" for name, parent in parents.items()})
    content = {"code": code_digest(), "config": _by_content(without_effects(named)), "data": data_digests(named["data"])}
    if named.get("entering"):
        content["entering"] = stage_hash(composed(named["entering"], named).config, {})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:DIGITS]


@cache
def code_digest() -> str:
    """SHA-256 of the sources of ROOMS and of what lies beside them; read once a process, which goes on with the code that it began with."""
    package = Path(posttrain.__file__).parent
    files = sorted(file for room in ROOMS for file in (package / room).rglob("*") if file.suffix in SOURCES)
    parts = {file.relative_to(package).as_posix(): sha256_of(file) for file in files}
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def without_effects(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without WITHOUT_EFFECT, and without data sources, for which `data_digests` stands."""
    return _less(config, "", (*WITHOUT_EFFECT, *READ_AS_DATA))


def _less(node: Mapping[str, Any], path: str, dropped: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for key, value in node.items():
        dotted = f"{path}.{key}" if path else str(key)
        if dotted not in dropped:
            found[key] = _less(value, dotted, dropped) if isinstance(value, Mapping) else value
    return found


def data_digests(data: Mapping[str, Any]) -> list[list[Any]]:
    """Of every data source what it is read as and how it is read: contents of files, of the hub where it is, all keys of the source."""
    settings = read_settings(data)
    return [[part, _reading(spec), _contents(spec)] for part in ("train", "val") for spec in getattr(settings, part)]


def _reading(spec: SourceSpec) -> dict[str, Any]:
    """All of a source but its path, which is also its name where it was given none."""
    keys = {key: value for key, value in asdict(spec).items() if key != "path"}
    return {**keys, "name": None if spec.name in spec.path else spec.name}


def _contents(spec: SourceSpec) -> list[str]:
    if spec.generator is not None:
        return [content_digest(spec)]
    return [place if is_hub_id(place) else content_digest(replace(spec, path=(place,))) for place in spec.path]


def _by_content(node: Any, key: str = "") -> Any:
    """The same with the content's digest in place of every local path, and beside the name of every function of the user."""
    if isinstance(node, Mapping):
        return {name: _by_content(value, str(name)) for name, value in node.items()}
    if isinstance(node, list):
        return [_by_content(value, key) for value in node]
    if not isinstance(node, str) or "\n" in node:
        return node
    path = os.path.expanduser(node)
    if os.path.isfile(path) or (os.path.isdir(path) and (key in FOLDERS or "/" in node or node.startswith("~"))):
        return digest_of(Path(path))
    code = _code_of(node, key)
    return node if code is None else [node.rpartition(":")[2], sha256_of(code)]


def _code_of(value: str, key: str) -> Path | None:
    """The file of a function of the user: a path `file.py:name` or `module:name`, a target that is neither ours nor a listed one."""
    if key == "_target_":
        return None if allowed(value) else source_of(value.rpartition(".")[0])
    module, _, name = value.rpartition(":")
    return source_of(module) if key == "path" and module and name.isidentifier() else None


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files; an artifact's weights are known by its record."""
    if path.is_file():
        return sha256_of(path)
    known = read_record(path)["files"] if has_record(path) else {}
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != RECORD_FILE)
    names = {file.relative_to(path).as_posix(): file for file in files}
    parts = {name: known.get(name) or sha256_of(file) for name, file in names.items()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
