"""The `data` node as checked values. Light: imports nothing heavy, so that a config check can use it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from posttrain.data.readers import DOCUMENTS, is_hub_id, kind_of
from posttrain.errors import ConfigError, Problem

CHOICES: dict[str, tuple[str, ...]] = {
    "on_error": ("raise", "skip"),
    "truncation": ("auto", "right", "left", "drop", "split"),
    "exhaustion": ("stop", "repeat"),
    "train_on": ("assistant", "last", "all"),
    "documents": DOCUMENTS,
}


@dataclass(frozen=True)
class SourceSpec:
    """One source: `path` (file, folder, glob, hub id, or several) or a `generator`.

    weight: share of the mixture. format: a registered name or auto. format_options: keywords of that format. columns: new name -> the
    source's name. subset, split, revision, streaming: of a hub data set. documents: what one document of a .txt file is.
    """

    name: str
    path: tuple[str, ...] = ()
    generator: Mapping[str, Any] | None = None
    weight: float = 1.0
    format: str = "auto"
    format_options: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = False
    documents: str = "file"


@dataclass(frozen=True)
class DataSettings:
    """The whole `data` node. Defaults and meaning of the keys: conf/data/_base.yaml."""

    train: tuple[SourceSpec, ...]
    val: tuple[SourceSpec, ...] = ()
    val_fraction: float = 0.05
    split_seed: int = 0
    truncation: str = "auto"
    train_on: str = "assistant"
    on_error: str = "raise"
    exhaustion: str = "stop"
    system: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    attributes: Sequence[str] = ()
    cache_dir: str | None = None
    workers: int | None = None


_WORDS = {str: "a text", bool: "true or false", Mapping: "key: value pairs"}
_TYPES: dict[str, type] = {
    **dict.fromkeys(("name", "format", "subset", "split", "revision", "val_split", "system", "cache_dir"), str),
    **dict.fromkeys(("template_kwargs", "format_options", "columns"), Mapping),
    "streaming": bool,
}
_SOURCE_KEYS = tuple(f.name for f in fields(SourceSpec))
_SHARED_KEYS = ("format", "format_options", "columns", "subset", "split", "revision", "streaming", "documents")
_OWN_KEYS = tuple(f.name for f in fields(DataSettings))
KEYS = tuple(dict.fromkeys(("name", *_OWN_KEYS, "sources", "generator", "val_split", *_SHARED_KEYS)))


def read_settings(data: Mapping[str, Any]) -> DataSettings:
    """Check a `data` node and turn it into settings. Raises ConfigError with every problem."""
    problems = [*_unknown("data", data, KEYS), *_bad_choices("data", data), *_bad_values(data)]
    problems += _bad_sources(data)
    if problems:
        raise ConfigError(problems)
    own = {key: data[key] for key in _OWN_KEYS if key not in ("train", "val") and data.get(key) is not None}
    settings = DataSettings(train=_train_sources(data), val=_val_sources(data), **own)
    unread = _unread("data", data, (*settings.train, *settings.val))
    for number, entry in enumerate(data.get("sources") or ()):
        unread += _unread(f"data.sources[{number}]", entry, settings.train[number : number + 1])
    if unread:
        raise ConfigError(unread)
    return settings


def _train_sources(data: Mapping[str, Any]) -> tuple[SourceSpec, ...]:
    if data.get("sources"):
        return tuple(_source({**_shared(data), **entry}, number) for number, entry in enumerate(data["sources"]))
    if data.get("generator"):
        return (SourceSpec(data.get("name") or "generated", generator=data["generator"], **_shared(data)),)
    return (_source({"name": data.get("name"), "path": data["train"], **_shared(data)}, 0),)


def _val_sources(data: Mapping[str, Any]) -> tuple[SourceSpec, ...]:
    shared = _shared(data) | ({"split": data["val_split"]} if data.get("val_split") else {})
    if data.get("val"):
        return (_source({"name": "val", "path": data["val"], **shared}, 0),)
    train = _source({"name": "val", "path": data.get("train"), **shared}, 0)
    if data.get("val_split") and train.path and all(map(is_hub_id, train.path)):  # files have no splits
        return (train,)
    if data.get("generator") and not data.get("sources"):
        return (SourceSpec("val", generator=data["generator"], **(_shared(data) | {"split": "val"})),)
    return ()


def _shared(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: data[key] for key in _SHARED_KEYS if data.get(key) is not None}


def _source(entry: Mapping[str, Any], number: int) -> SourceSpec:
    path = entry.get("path") or ()
    paths = (path,) if isinstance(path, str) else tuple(path)
    name = entry.get("name") or (paths[0] if paths else f"source{number}")
    kept = {key: value for key, value in entry.items() if key not in ("name", "path") and value is not None}
    return SourceSpec(name, paths, **kept)


def _unread(where: str, values: Mapping[str, Any], sources: Sequence[SourceSpec]) -> list[Problem]:
    """Keys that are set, and that none of the sources they are meant for reads.

    An option that names a data set of the hub may have a local copy in its place, which needs none of the keys that the option sets.
    """
    defaults = SourceSpec("")
    problems = []
    copy = where == "data" and values.get("name") != OWN_FILES and not any(map(_is_hub, sources))
    for key, (reads, whose) in _READ_BY.items() if not copy else ():
        default = getattr(defaults, key)
        if values.get(key) not in (None, default) and not any(reads(source) for source in sources):
            hint = f"leave it out, or {where}.{key}={'null' if default is None else str(default).lower()}"
            problems.append(Problem(f"{where}.{key}", f"is read of {whose} only, and there is none", hint))
    return problems


def _is_hub(source: SourceSpec) -> bool:
    return any(map(is_hub_id, source.path))


def _may_hold_text(source: SourceSpec) -> bool:
    """Whether .txt files may be among the source's: folders and globs are not looked into."""
    return any(kind_of(Path(place)) in (None, ".txt") and not is_hub_id(place) for place in source.path)


OWN_FILES = "files"  # the option of `data`
_HUB = (_is_hub, "data sets of the hub")
_READ_BY: dict[str, tuple[Callable[[SourceSpec], bool], str]] = {
    **dict.fromkeys(("subset", "revision", "streaming"), _HUB),
    "split": (lambda source: source.generator is not None or _is_hub(source), "data sets of the hub and generators"),
    "documents": (_may_hold_text, ".txt files"),
}


def _bad_sources(data: Mapping[str, Any]) -> list[Problem]:
    given = [key for key in ("train", "sources", "generator") if data.get(key)]
    if len(given) != 1:
        found = "none of them" if not given else " and ".join(given)
        message = f"one of data.train, data.sources, data.generator is needed, got {found}"
        return [
            Problem("data.train", message, "your own files: data=files data.train=PATH" if len(given) > 1 else "data.train=PATH_OR_HUB_ID")
        ]
    problems = []
    for key in ("train", "val"):
        if data.get(key) and not _is_paths(data[key]):
            problems.append(Problem(f"data.{key}", f"expected a path, a hub id or a list of them, got {data[key]!r}"))
    if data.get("generator") and not _is_generator(data["generator"]):
        problems.append(Problem("data.generator", "expected a node with _target_"))
    if data.get("sources") and not _is_list(data["sources"]):
        return [*problems, Problem("data.sources", f"expected a list of sources, got {data['sources']!r}", "[{path: A, weight: 0.7}, ...]")]
    for number, entry in enumerate(data.get("sources") or ()):
        problems += _bad_source(f"data.sources[{number}]", entry)
    return problems


def _bad_source(where: str, entry: Any) -> list[Problem]:
    if not isinstance(entry, Mapping):
        return [Problem(where, f"expected path, weight, ..., got {entry!r}")]
    problems = [*_unknown(where, entry, _SOURCE_KEYS), *_bad_choices(where, entry), *_bad_types(where, entry)]
    if bool(entry.get("path")) == bool(entry.get("generator")):
        problems.append(Problem(where, "needs either a path or a generator"))
    elif entry.get("path") and not _is_paths(entry["path"]):
        problems.append(Problem(f"{where}.path", f"expected a path, a hub id or a list of them, got {entry['path']!r}"))
    elif entry.get("generator") and not _is_generator(entry["generator"]):
        problems.append(Problem(f"{where}.generator", "expected a node with _target_"))
    weight = entry.get("weight", 1.0)
    if not _is_number(weight) or not 0 < weight < math.inf:
        problems.append(Problem(f"{where}.weight", f"expected a number above 0, got {weight!r}"))
    return problems


def _bad_choices(where: str, values: Mapping[str, Any]) -> list[Problem]:
    bad = [(key, names) for key, names in CHOICES.items() if values.get(key) is not None and values[key] not in names]
    return [
        Problem(f"{where}.{key}", f"expected one of {', '.join(names)}, got {values[key]!r}", _near(values[key], names))
        for key, names in bad
    ]


def _bad_values(data: Mapping[str, Any]) -> list[Problem]:
    problems = []
    fraction, workers = data.get("val_fraction"), data.get("workers")
    if fraction is not None and (not _is_number(fraction) or not 0 <= fraction < 1):
        problems.append(Problem("data.val_fraction", f"expected a number from 0 to below 1, got {fraction!r}"))
    seed = data.get("split_seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or seed < 0):
        problems.append(Problem("data.split_seed", f"expected a whole number from 0, got {seed!r}"))
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        problems.append(Problem("data.workers", f"expected a whole number from 1, or null, got {workers!r}"))
    return problems + _bad_types("data", data)


def _bad_types(where: str, values: Mapping[str, Any]) -> list[Problem]:
    wrong = [(key, kind) for key, kind in _TYPES.items() if values.get(key) is not None and not isinstance(values[key], kind)]
    problems = [Problem(f"{where}.{key}", f"expected {_WORDS[kind]}, got {values[key]!r}") for key, kind in wrong]
    return problems + _bad_columns(where, values)


def _bad_columns(where: str, values: Mapping[str, Any]) -> list[Problem]:
    columns = values.get("columns")
    wrong = {new: old for new, old in columns.items() if not isinstance(old, str)} if isinstance(columns, Mapping) else {}
    return [
        Problem(f"{where}.columns.{new}", f"expected the name of a column in the file, got {old!r}", "columns={new_name: name_in_the_file}")
        for new, old in wrong.items()
    ]


def _unknown(where: str, values: Mapping[str, Any], known: Sequence[str]) -> list[Problem]:
    return [Problem(f"{where}.{key}", "unknown key", _near(key, known)) for key in values if key not in known]


def _near(name: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean {close[0]}?" if close else ""


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_paths(value: Any) -> bool:
    return isinstance(value, str) or (_is_list(value) and bool(value) and all(isinstance(item, str) for item in value))


def _is_generator(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("_target_"), str)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
