"""Where finished stages are kept, by hash; one process at a time makes a stage, the others wait and find it there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from posttrain.errors import ConfigError
from posttrain.models.integrity import verify
from posttrain.runs.files import write_atomic
from posttrain.runs.pipeline.identity import WITHOUT_EFFECT, code_digest
from posttrain.runs.resume import CONFIG, FREE, set_aside

ARTIFACT, RESULT = "artifact", "result.json"
BEGUN = ".begun"  # in a pipeline's folder: which of its stages it made itself
COMMAND, CODE = ".command", ".code"  # in a stage's folder: the command that made it anew, and the sources that it was made with


@contextmanager
def holding(store: Path, key: str, waiting: Callable[[], None], command: str | None = None) -> Iterator[Path]:
    """The stage's folder, which nobody else makes or changes inside the block. waiting: told once if somebody else has it now.

    A holder that died has let go; its run may take a moment longer to end, and is waited for too. command: see `folder_of`.
    """
    store.mkdir(parents=True, exist_ok=True)
    with _locked(store / f".{key}.lock", waiting):
        folder = folder_of(store, key, command)
        folder.mkdir(exist_ok=True)
        if command is not None:
            write_atomic(folder / COMMAND, f"{command}\n")
        with _locked(folder / ".lock", waiting):
            pass
        yield folder


def folder_of(store: Path, key: str, command: str | None = None) -> Path:
    """Where a stage lies, or is to be made: the newest of its folders KEY, KEY-2, KEY-3, ...

    command: one that makes stages anew. It gets a folder of its own beside those that are there, which runs that started from them may
    be reading, and finds that again as often as it needs the stage.
    """
    there = _folders(store, key)
    if command is not None and (own := [folder for folder in there if _noted(folder / COMMAND) == command]):
        return own[-1]
    if command is None or not there or not (there[-1] / CONFIG).is_file():
        return there[-1] if there else store / key
    return store / f"{key}-{1 + _number(there[-1], key)}"


def _folders(store: Path, key: str) -> list[Path]:
    """All folders of a stage, oldest first."""
    more = [folder for folder in store.glob(f"{key}-*") if folder.name[len(key) + 1 :].isdecimal()]
    return sorted((folder for folder in (store / key, *more) if folder.is_dir()), key=lambda folder: _number(folder, key))


def _number(folder: Path, key: str) -> int:
    return int(folder.name[len(key) + 1 :] or 1)


def _noted(file: Path) -> str | None:
    """A line that was written down; None where it was not."""
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


@contextmanager
def _locked(file: Path, waiting: Callable[[], None]) -> Iterator[None]:
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


def result_of(folder: Path) -> dict[str, Any] | None:
    """What the run in a folder came to; None if it has not ended, or its record is damaged."""
    try:
        content = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def distrust(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Why a stage that says it is finished is not taken: its artifact is damaged, or somebody went on training there. None if it is sound.

    config: of the stage as it is wanted now.
    """
    try:
        verify(folder / ARTIFACT)
    except ConfigError as error:
        return str(error.problems[0])
    if not (folder / CONFIG).is_file():
        return f"its {CONFIG} is gone"
    there = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    free = [key for key in FREE if "." not in key and key not in WITHOUT_EFFECT]
    changed = [key for key in free if _effect(key, there) != _effect(key, config)]
    return f"its run was changed in {', '.join(changed)}" if changed else None


def _effect(key: str, config: Mapping[str, Any]) -> Any:
    value = config.get(key)
    hidden = [name.removeprefix(f"{key}.") for name in WITHOUT_EFFECT if name.startswith(f"{key}.")]
    return {name: item for name, item in value.items() if name not in hidden} if isinstance(value, Mapping) else value


def begin_anew(folder: Path) -> None:
    """Move what a stage left aside; the folder stays that of the command which it was made for."""
    command = _noted(folder / COMMAND)
    set_aside(folder)
    if command is not None:
        write_atomic(folder / COMMAND, f"{command}\n")


def link(place: Path, target: Path) -> None:
    """Let `place` point to `target`, relative, so that both can be moved together. What `place` pointed to before stays."""
    partial = place.with_name(f".{place.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(target, place.parent), target_is_directory=True)
    os.replace(partial, place)


def note_begun(pipeline: Path, name: str, folder: Path) -> None:
    """Remember in a pipeline's folder that it made this stage itself, also where a kill ends that; in the stage's, with what sources."""
    (pipeline / BEGUN).mkdir(exist_ok=True)
    write_atomic(pipeline / BEGUN / name, f"{folder.name}\n")
    write_atomic(folder / CODE, f"{code_digest()}\n")


def was_begun(pipeline: Path, name: str, folder: Path) -> bool:
    """Whether the pipeline in this folder made the stage itself."""
    return _noted(pipeline / BEGUN / name) == folder.name


def outdated(place: Path, folder: Path) -> Path | None:
    """What the pipeline's link to a stage pointed to before it is to point to `folder`, if that was made with other sources."""
    before = place.resolve()
    return before if before != folder.resolve() and _noted(before / CODE) not in (None, code_digest()) else None
