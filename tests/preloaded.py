"""Processes of this package that are forked from a server which has imported torch, lightning and transformers once.

A real process in everything else: its own memory, environment, session, standard streams and signals. Starting from nothing costs seconds;
tests/configs/test_speed.py, tests/distributed and tests/faults prove it.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import chdir
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RANKS = ("posttrain.runs.worker", "tests.distributed.ranks", "tests.studies")  # modules with a `main`
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.warm"])


class Preloaded:
    """`python -m MODULE ARGUMENTS` in `folder`, with as much of `subprocess.Popen` as is asked of it here.

    captured: keep standard output and error for `communicate`; else they go where the server's go.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
        captured: bool = False,
    ) -> None:
        self._told = tempfile.TemporaryDirectory() if captured else None
        told = None if self._told is None else self._told.name
        stdin, self._stdin = SERVER.Pipe(duplex=False)
        environment = dict(os.environ if env is None else env)
        given = (module, list(arguments), environment, str(folder or Path.cwd()), stdin, told)
        self._process = SERVER.Process(target=_run, args=given, daemon=True)
        with chdir(ROOT):  # where the server, which the first process starts, finds the package
            self._process.start()
        stdin.close()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a preloaded process", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None and self.pid is not None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def communicate(self, given: str = "", timeout: float | None = None) -> tuple[str, str]:
        """Standard output and standard error, once it has ended. given: a few lines to read before the end of its input."""
        if given:
            os.write(self._stdin.fileno(), given.encode())
            self._stdin.close()
        self.wait(timeout)
        self._stdin.close()
        if self._told is None:
            return "", ""
        with self._told as folder:
            return (Path(folder) / "1").read_text(), (Path(folder) / "2").read_text()


def _run(module: str, arguments: list[str], environment: dict[str, str], folder: str, stdin: Connection, told: str | None) -> None:
    """In the new process."""
    import torch
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(stdin.fileno(), 0)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)  # multiprocessing had put another file there
    for number in (1, 2) if told else ():
        os.dup2(os.open(f"{told}/{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", "1")))
    rank_zero_only.rank = int(environment.get("RANK", "0"))  # read when lightning is imported
    main = importlib.import_module(module if module in RANKS else f"{module}.__main__").main
    sys.exit(main(arguments))


def posttrain(*arguments: str, folder: Path | None = None, **env: str) -> Preloaded:
    """The command line, its output kept."""
    return Preloaded("posttrain", arguments, folder=folder, env={**os.environ, **env}, captured=True)


def popen(command: Sequence[str], *, env: Mapping[str, str], **options: Any) -> Preloaded | subprocess.Popen[bytes]:
    """A preloaded process where the command is a run of this package, else an ordinary one."""
    if command[1] == "-m" and command[2] in RANKS:
        return Preloaded(command[2], command[3:], env=env)
    return subprocess.Popen(command, env=env, **options)


SUBPROCESS = SimpleNamespace(Popen=popen, PIPE=subprocess.PIPE)
