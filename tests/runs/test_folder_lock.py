"""A run's folder is one process's at a time; who looks whether it is taken keeps nobody from it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from filelock import FileLock

from posttrain.runs.folder_lock import FILE, Taken, alone_in, is_taken


def test_a_folder_is_taken_as_long_as_somebody_has_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert not is_taken(folder)
    with alone_in(folder):
        assert is_taken(folder)
        with pytest.raises(Taken, match=r"another process is training in .*run \(wait for it"), alone_in(folder):
            pytest.fail("two have it")
    assert not is_taken(folder)


def test_a_run_that_starts_while_its_status_is_asked_goes_on(tmp_path: Path) -> None:
    """Asking holds the lock for an instant."""
    asking = FileLock(tmp_path / FILE, thread_local=False)
    asking.acquire()
    answered = threading.Timer(0.1, asking.release)
    answered.start()
    with alone_in(tmp_path):
        assert is_taken(tmp_path)
    answered.join()
