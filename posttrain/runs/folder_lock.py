"""A run's folder belongs to one process at a time, by a lock on a file in it that ends with the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from posttrain.errors import ConfigError, Problem
from posttrain.runs.files import prepare_folder

FILE = ".lock"
LOOK_SECONDS = 1.0  # somebody who looks whether a folder is taken has its lock for a moment


class Taken(ConfigError):
    """Another process trains in the folder; how that ends is for the other one to tell."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Problem("output_dir", f"another process is training in {folder}", "wait for it or choose another"))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """The folder, made where it is not there, for this process alone.

    Raises:
        Taken: another process has it.
        ConfigError: it cannot be written to.
    """
    prepare_folder(folder)
    lock = FileLock(folder / FILE)
    try:
        lock.acquire(timeout=LOOK_SECONDS, poll_interval=0.05)
    except Timeout:
        raise Taken(folder) from None
    try:
        yield
    finally:
        lock.release()


def is_taken(folder: Path) -> bool:
    """Whether a process trains in a folder. One that is about to is not kept from it."""
    if not (folder / FILE).is_file():
        return False
    lock = FileLock(folder / FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
