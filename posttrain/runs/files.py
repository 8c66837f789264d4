"""Writing files so that a kill or a full disk never leaves half of one, and says what to do about it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from posttrain.errors import ConfigError, Problem

ADVICE = {
    errno.ENOSPC: "the disk is full: free space and run the same command again, it resumes from the last checkpoint",
    errno.EDQUOT: "the disk quota is used up: free space and run the same command again, it resumes from the last checkpoint",
    errno.EACCES: "no permission to write there: choose another output_dir or mend the permissions",
    errno.EPERM: "not allowed to write there: choose another output_dir or mend the permissions",
    errno.EROFS: "the file system is read-only: choose another output_dir",
    errno.ENOTDIR: "a part of the path is a file, not a folder: choose another output_dir",
    errno.ENOENT: "the folder is gone: was it removed while the run was going on?",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Re-raise any OSError of the block as an OSError (same errno) that names `path` and says what to do."""
    try:
        yield
    except OSError as error:
        reason = ADVICE.get(error.errno or 0, error.strerror or str(error))
        raise OSError(error.errno, f"cannot write {path}: {reason}") from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`: a reader, also after a crash, sees the old file or the new one, never a mixture."""
    payload = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        try:
            with partial.open("wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        sync_path(path.parent)


def sync_path(path: Path) -> None:
    """Make a file's contents, or the renames in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prepare_folder(folder: Path, *, key: str = "output_dir", need_bytes: int = 0) -> None:
    """Create `folder` and prove that it can be written to and has `need_bytes` free.

    Raises ConfigError naming the config `key`, so that a run that cannot save stops before it trains.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(Problem(key, f"{folder} is a file, expected a folder", "choose another path"))
    probe = folder / f".writable.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x" * 4096)
    except OSError as error:
        reason = ADVICE.get(error.errno or 0, error.strerror or str(error))
        raise ConfigError(Problem(key, f"cannot write to {folder}: {reason}")) from error
    finally:
        if folder.is_dir():
            probe.unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        message = f"{folder} has {free / 1e9:.1f} GB free, the run needs about {need_bytes / 1e9:.1f} GB"
        raise ConfigError(Problem(key, message, "free space, choose another folder, or lower checkpoint.keep_last"))


def shown(path: Path) -> str:
    """A path as short as it can be typed from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
