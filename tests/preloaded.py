"""Processes of this package that are forked from a server which has imported all that any of them imports, one of each test process.

Real processes in everything else (tests/runs/test_forking.py); starting from nothing costs seconds. What they start is forked, too.
tests/configs/test_speed.py, tests/distributed and tests/faults prove that it works from nothing.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path
from typing import Any

from posttrain.runs.forking import client
from posttrain.runs.forking.client import Process, serving
from posttrain.runs.forking.request import SERVER, socket_at

TESTS = Path(__file__).resolve().parent
FOUND = os.pathsep.join((str(TESTS.parent), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])))
client.FORKED = (*client.FORKED, "tests.distributed.ranks")
at_first: Mapping[str, str] = {**os.environ, "PYTHONPATH": FOUND}
_open = ExitStack()
atexit.register(_open.close)


def restore(environment: Mapping[str, str]) -> None:
    """Make it that of this process."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def line() -> int | None:
    """The way to the server of this test process, which is started where there is none."""
    if socket_at(os.environ.get(SERVER, "")) is None:
        kept = dict(os.environ)
        with chdir(TESTS.parent):
            restore(at_first)  # not what the test that happens to be the first has set
            _open.enter_context(serving(["tests.warm"]))
        restore(kept | {SERVER: os.environ[SERVER]} if SERVER in os.environ else kept)
    return socket_at(os.environ.get(SERVER, ""))


@contextmanager
def served() -> Iterator[None]:
    """`client.serving` that stays for all tests."""
    line()
    yield


def start(command: Sequence[str], environment: Mapping[str, str], **options: Any) -> Process:
    """`client.start`, forked also where no pipeline or sweep goes on."""
    line()
    return client.start(command, environment, **options)


class Told:
    """`python -m posttrain ARGUMENTS` in `folder`, with its output kept."""

    def __init__(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._kept = tempfile.TemporaryDirectory()
        server = line()
        with chdir(folder), (self._file(1)).open("wb") as out, self._file(2).open("wb") as err:
            command = [sys.executable, "-m", "posttrain.__main__", *arguments]
            forked = None if server is None else client.fork(server, command, environment, output=(out.fileno(), err.fileno()))
            self._process: Process = forked or subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=out, stderr=err, start_new_session=True
            )
        self.pid = self._process.pid

    def _file(self, number: int) -> Path:
        return Path(self._kept.name) / str(number)

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self, timeout: float | None = None) -> int:
        return self._process.wait(timeout)

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def communicate(self, given: str = "", timeout: float | None = None) -> tuple[str, str]:
        """Standard output and standard error, once it has ended. given: a few lines to read before the end of its input."""
        assert self._process.stdin is not None
        if not self._process.stdin.closed:
            self._process.stdin.write(given.encode())
            if given:
                self._process.stdin.close()
        self.wait(timeout)
        self._process.stdin.close()
        with self._kept:
            return self._file(1).read_text(), self._file(2).read_text()


def posttrain(*arguments: str, folder: Path | None = None, **env: str) -> Told:
    """The command line, its output kept."""
    return Told(arguments, folder or Path.cwd(), {**os.environ, **env})
