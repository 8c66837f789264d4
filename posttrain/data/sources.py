"""Sources: the rows of files, folders, globs, hub data sets and generators, streamed; and what identifies their contents."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from posttrain.data.readers import READERS, is_hub_id, kind_of, read_text
from posttrain.data.rows import BadRow, Row, numbered, without_nulls
from posttrain.data.settings import SourceSpec
from posttrain.data.streams import COMPRESSIONS, open_binary
from posttrain.errors import DataError, Problem

_GENERATORS = "posttrain."


def read_rows(spec: SourceSpec, limit: int | None = None) -> Iterator[Row | BadRow]:
    """Rows of a source in a fixed order, at most `limit`. Raises DataError for what is missing, unreadable or empty."""
    rows = _renamed(_all_rows(spec), spec.columns) if spec.columns else _all_rows(spec)
    empty = True
    for row in islice(rows, limit):
        empty = False
        yield row
    if empty and limit != 0:
        raise DataError(Problem(origin_of(spec), "the data set is empty: it has no rows"))


def origin_of(spec: SourceSpec) -> str:
    """Where the rows come from, in one line."""
    return ", ".join(spec.path) or str((spec.generator or {}).get("_target_", spec.name))


def row_files(spec: SourceSpec) -> list[str]:
    """What the rows of a source are said to come from (`Row.file`), in order: files, hub data sets, the name of a generator."""
    if spec.generator is not None:
        return [spec.name]
    return [name for place in spec.path for name in ([place] if is_hub_id(place) else map(str, find_files(place)))]


def _all_rows(spec: SourceSpec) -> Iterator[Row | BadRow]:
    if spec.generator is not None:
        yield from numbered(generated(spec.generator, spec.split), spec.name)
        return
    for place in spec.path:
        if is_hub_id(place):
            yield from numbered(_hub_rows(place, spec), place)
            continue
        for file in find_files(place):
            yield from read_file(file, documents=spec.documents)


def read_file(path: Path, *, documents: str = "file") -> Iterator[Row | BadRow]:
    """Rows of one file; `documents` says what a document of a .txt file is: file, line or paragraph."""
    kind = kind_of(path)
    if kind is None:
        raise DataError(Problem(str(path), f"unknown kind of file, expected {_known_kinds()}"))
    reader = partial(read_text, documents=documents) if kind == ".txt" else READERS[kind]
    with open_binary(path) as stream:
        yield from reader(stream, str(path))


def _known_kinds() -> str:
    return ", ".join(READERS) + f", each also with {' or '.join(COMPRESSIONS)}"


def find_files(place: str) -> list[Path]:
    """The data files that a path, a folder (searched through) or a glob names, sorted. Raises DataError if there are none."""
    path = local_path(place)
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        found = sorted(file for file in path.rglob("*") if file.is_file() and kind_of(file) and not _hidden(file.relative_to(path)))
        if not found:
            raise DataError(Problem(place, "the folder holds no data files", f"known kinds: {_known_kinds()}"))
        return found
    if any(mark in place for mark in "*?["):
        base = Path(path.anchor) if path.is_absolute() else Path()
        pattern = str(path.relative_to(path.anchor)) if path.is_absolute() else str(path)
        try:
            found = sorted(file for file in base.glob(pattern) if file.is_file() and kind_of(file))
        except ValueError as error:
            raise DataError(Problem(place, f"is no pattern: {error}", "** stands for folders, as in DIR/**/*.jsonl")) from error
        if not found:
            raise DataError(Problem(place, "no data file matches"))
        return found
    if os.path.exists(path):
        raise DataError(Problem(place, "is neither a file nor a folder", "save the rows in a file: they are read more than once"))
    raise DataError(Problem(place, "no such file or folder", nearest_path(path)))


def local_path(place: str) -> Path:
    """The path that a text means. The home of a user who does not exist stays as written, to be reported as missing."""
    return Path(os.path.expanduser(place))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def nearest_path(path: Path) -> str:
    """A hint that names what exists near a path that does not; empty if nothing resembles it."""
    parent = path.parent
    while not os.path.isdir(parent):
        path, parent = parent, parent.parent
    names = [entry.name for entry in parent.iterdir()]
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"did you mean {parent / close[0]}?" if close else f"there is no {path.name} in {parent.resolve()}"


def check_sources(specs: Sequence[SourceSpec]) -> list[Problem]:
    """What is missing, without reading any row: files, folders, globs without a match, generators that are not there."""
    problems: list[Problem] = []
    for spec in specs:
        try:
            if spec.generator is not None:
                _generator(spec.generator)
            for place in spec.path:
                if not is_hub_id(place):
                    find_files(place)
        except DataError as error:
            problems += error.problems
    return problems


def _renamed(rows: Iterable[Row | BadRow], columns: Mapping[str, str]) -> Iterator[Row | BadRow]:
    """Rows with `columns` (new name -> the source's name) renamed; a row without such a column is bad."""
    back = {old: new for new, old in columns.items()}
    for row in rows:
        if isinstance(row, BadRow):
            yield row
        elif missing := [old for old in back if old not in row.value]:
            yield BadRow(row.file, row.line, f"data.columns names {', '.join(missing)}; the row has {', '.join(row.value)}")
        else:
            kept = {name: value for name, value in row.value.items() if name not in columns or name in back}
            yield Row({back.get(name, name): value for name, value in kept.items()}, row.file, row.line)


def generated(node: Mapping[str, Any], split: str) -> Iterator[Mapping[str, Any]]:
    """Rows of a generator: `_target_(split, **rest)`."""
    options = {key: value for key, value in node.items() if not key.startswith("_")}
    yield from _generator(node)(split, **options)


def _generator(node: Mapping[str, Any]) -> Any:
    target = str(node["_target_"])
    module, _, name = target.rpartition(".")
    if not module.startswith(_GENERATORS):
        raise DataError(Problem("data.generator._target_", f"may only name a function of posttrain, got {target}"))
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DataError(Problem("data.generator._target_", f"there is no {target}")) from error


def _load_hub(place: str, spec: SourceSpec) -> Any:
    import datasets

    name = place.removeprefix("hf://")
    try:
        return datasets.load_dataset(name, spec.subset, split=spec.split, revision=spec.revision, streaming=spec.streaming)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        hint = nearest_path(Path(name)) if "/" in name else ""
        raise DataError(Problem(place, f"cannot be loaded from the hub: {reason}", f"if it is a path: {hint}" if hint else "")) from error


def _hub_rows(place: str, spec: SourceSpec) -> Iterator[Mapping[str, Any]]:
    yield from map(without_nulls, _load_hub(place, spec))


def content_digest(spec: SourceSpec) -> str:
    """blake2b over the contents of files, a hub data set's fingerprint, a generator's code and settings; and the keys of reading."""
    digest = hashlib.blake2b(digest_size=16)
    keys = [spec.documents, dict(spec.columns), spec.split if spec.generator else "", dict(spec.generator or {})]
    digest.update(json.dumps(keys, sort_keys=True, default=str).encode())
    if spec.generator is not None:
        digest.update(inspect.getsource(sys.modules[_generator(spec.generator).__module__]).encode())
    for place in spec.path:
        if is_hub_id(place):
            digest.update(_hub_fingerprint(place, spec).encode())
            continue
        for file in find_files(place):
            with file.open("rb") as stream:
                digest.update((kind_of(file) or "").encode() + hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()


def _hub_fingerprint(place: str, spec: SourceSpec) -> str:
    """Names the exact contents: the Arrow fingerprint of a downloaded data set, the commit of a streamed one."""
    if not spec.streaming:
        return str(_load_hub(place, spec)._fingerprint)
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(place.removeprefix("hf://"), revision=spec.revision).sha
    except OSError as error:
        raise DataError(Problem(place, f"cannot be reached on the hub: {error}")) from error
    return json.dumps([place, spec.subset, spec.split, commit])
