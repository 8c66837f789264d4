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
from posttrain.runs.pipeline.identity import WITHOUT_EFFECT
from posttrain.runs.resume import CONFIG, FREE, set_aside

ARTIFACT, RESULT = "artifact", "result.json"
BEGUN = ".begun"  # in a pipeline's folder: which of its stages it made itself


@contextmanager
def holding(store: Path, key: str, waiting: Callable[[], None]) -> Iterator[Path]:
    """The stage's folder, which nobody else makes or changes inside the block. waiting: told once if somebody else has it now.

    A holder that died has let go; its run may take a moment longer to end, and is waited for too.
    """
    folder = store / key
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(store / f".{key}.lock", waiting):
        with _locked(folder / ".lock", waiting):
            pass
        yield folder


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
    """Move what a stage left aside."""
    set_aside(folder)


def link(place: Path, target: Path) -> None:
    """Let `place` point to `target`, relative, so that both can be moved together. What `place` pointed to before stays."""
    partial = place.with_name(f".{place.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(target, place.parent), target_is_directory=True)
    os.replace(partial, place)


def note_begun(pipeline: Path, name: str, key: str) -> None:
    """Remember in a pipeline's folder that it made this stage itself, also where a kill ends that."""
    (pipeline / BEGUN).mkdir(exist_ok=True)
    write_atomic(pipeline / BEGUN / name, f"{key}\n")


def was_begun(pipeline: Path, name: str, key: str) -> bool:
    """Whether the pipeline in this folder made the stage itself."""
    note = pipeline / BEGUN / name
    return note.is_file() and note.read_text(encoding="utf-8").strip() == key
