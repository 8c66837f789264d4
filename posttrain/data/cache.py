"""A cache of folders keyed by content: built by one process while others wait, complete or not there, checked when read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from posttrain.errors import ConfigError, Problem

log = logging.getLogger(__name__)

META = "meta.json"


def cache_root(configured: str | None) -> Path:
    """The cache folder: as configured, else $POSTTRAIN_CACHE, else the user's cache; made if absent. Raises ConfigError otherwise."""
    base = configured or os.environ.get("POSTTRAIN_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "posttrain"
    root = Path(os.path.expanduser(base)) / "tokens"
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / ".writable").touch()
    except OSError as error:
        raise _unwritable(root, error) from error
    return root


def _unwritable(root: Path, error: OSError) -> ConfigError:
    message = f"the cache folder {root} cannot be written: {error.strerror or error}"
    return ConfigError(Problem("data.cache_dir", message, "data.cache_dir=FOLDER"))


def fetch(root: Path, key: str, build: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any], bool]:
    """The folder of `key`, its meta data, and whether it was there. `build` fills an empty folder and returns the meta data.

    One process builds, the others wait for its lock; a folder that is not what was written is built again.
    """
    folder = root / key
    meta = read_checked(folder)
    if meta is not None:
        return folder, meta, True
    with _alone(root / f"{key}.lock"):
        meta = read_checked(folder)
        if meta is not None:
            return folder, meta, True
        return folder, _build(root, key, build), False


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        log.info("another process prepares this data; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(root: Path, key: str, build: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    for left in root.glob(f".{key}.*"):  # of a build that was killed: the lock is ours now
        shutil.rmtree(left)
    work = root / f".{key}.{os.getpid()}"
    work.mkdir()
    try:
        meta = dict(build(work))
        meta["files"] = {file.name: _digest(file) for file in sorted(work.iterdir())}
        (work / META).write_text(json.dumps(meta), encoding="utf-8")
        _sync(work)
        shutil.rmtree(root / key, ignore_errors=True)
        work.rename(root / key)
    except OSError as error:
        raise _unwritable(root, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return meta


def _sync(work: Path) -> None:
    """Contents reach the disk before the name does."""
    for file in work.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def read_checked(folder: Path) -> dict[str, Any] | None:
    """The meta data of a folder whose files are all as they were written, else None."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        intact = all(_digest(folder / name) == digest for name, digest in meta["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # absent or damaged: both mean that it has to be built
    return meta if intact else None


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()
