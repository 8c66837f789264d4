"""Starting processes of this package: forked from a server where there is one, else from nothing."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import IO, Any

from posttrain.runs.forking.request import NUMBER, SERVER, Request, address_of, is_possible, socket_at
from posttrain.runs.parallel.places import Need

FORKED = tuple(f"posttrain.runs.{name}" for name in ("worker", "tracking.sender", "tracking.parent"))  # modules
WARM = "posttrain.runs.forking.warm"


class Forked:
    """A process below a fork server, with as much of `subprocess.Popen` as is asked of it here.

    pid: its number. stdin: a pipe that it may watch for the end of this process. stdout: what it prints, where that is captured. status:
    where the server says how it ended.
    """

    def __init__(self, pid: int, stdin: IO[bytes], status: int) -> None:
        self.pid, self.stdin = pid, stdin
        self.stdout: IO[bytes] | None = None
        self.returncode: int | None = None
        self._status = status

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The same, once it has ended. Raises subprocess.TimeoutExpired."""
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return self._end() if self.returncode is None else self.returncode

    def send_signal(self, number: int) -> None:
        """To the process, if it has not ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def _end(self) -> int:
        said = _number(self._status)
        code = -signal.SIGKILL if said is None else said
        if said is None:  # the server was killed, and nobody would know how this one ends
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        os.close(self._status)
        self.returncode = code
        return code


Process = subprocess.Popen[bytes] | Forked


def start(
    command: Sequence[str], environment: Mapping[str, str], *, output: tuple[int, int] = (1, 2), fresh: Mapping[str, str] | None = None
) -> Process:
    """Run `command` in a session of its own, its standard input a pipe from here.

    output: file descriptors of its standard output and error. Forked where this process is below a server (see `serving`), the command is
    one of FORKED, and the environment has what the server's had. fresh: the environment of a process that is not forked, where it is
    another one.
    """
    line = socket_at(os.environ.get(SERVER, ""))
    is_ours = command[:2] == [sys.executable, "-m"] and command[2] in FORKED
    if line is not None and is_ours and (forked := fork(line, command, environment, output=output)):
        return forked
    out, err = output
    return subprocess.Popen(command, env=fresh or environment, stdin=subprocess.PIPE, stdout=out, stderr=err, start_new_session=True)


def start_captured(command: Sequence[str], environment: Mapping[str, str]) -> Process:
    """`start`, with a pipe in `stdout` of all that it prints, errors too."""
    ours, theirs = os.pipe()
    stdout = os.fdopen(ours, "rb")
    with os.fdopen(theirs, "wb"):
        process = start(command, environment, output=(theirs, theirs))
    process.stdout = stdout
    return process


def end(process: Process) -> None:
    """Kill it if it has not ended, and wait for it."""
    if process.poll() is None:
        process.kill()
    if process.stdin is not None:
        process.stdin.close()
    process.wait()


def fork(line: int, command: Sequence[str], environment: Mapping[str, str], *, output: tuple[int, int] = (1, 2)) -> Forked | None:
    """`[python, "-m", module, ...]` by the server at the other end of `line`: a module of this package with a `main` of its arguments.

    output: file descriptors of standard output and error. None where the server is gone, or its environment was another one.
    """
    theirs, stdin = os.pipe()
    answer, their_answer = os.pipe()
    asked, text = os.pipe()
    with suppress(OSError), socket.socket(fileno=os.dup(line)) as server:
        socket.send_fds(server, [b"\0"], [asked, their_answer, theirs, *output])
    for fd in (asked, their_answer, theirs):  # where they were not sent, both pipes have an end now
        os.close(fd)
    with suppress(BrokenPipeError), open(text, "wb") as file:  # read by the server as it is written: it may be longer than a pipe is
        file.write(Request.of(command, environment).as_json())
    if pid := _number(answer):
        return Forked(pid, os.fdopen(stdin, "wb", buffering=0), answer)
    os.close(stdin)
    os.close(answer)
    return None


def _number(fd: int) -> int | None:
    """What the server writes; None where it is gone."""
    text = os.read(fd, NUMBER.size)
    if not text:
        return None
    (number,) = NUMBER.unpack(text)
    return int(number)


def serving_runs(configs: Sequence[Mapping[str, Any]], *, more: bool = False) -> AbstractContextManager[None]:
    """`serving` where these runs and pipelines take several processes, and none of them a GPU: beside its minutes, imports are nothing.

    more: others will follow.
    """
    several = more or sum(len(config["stages"] or ("itself",)) for config in configs) > 1
    return serving() if several and not any(Need.of(config).gpus for config in configs) else nullcontext()


@contextmanager
def serving(modules: Sequence[str] = (WARM,)) -> Iterator[None]:
    """Inside the block there is a fork server that has imported `modules`, for this process and all below it; where one is, that stays."""
    if not is_possible() or socket_at(os.environ.get(SERVER, "")) is not None:
        yield
        return
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        command = [sys.executable, "-m", "posttrain.runs.forking.server", str(theirs.fileno()), *modules]
        fds = (ours.fileno(), theirs.fileno())
        server = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=fds, start_new_session=True)
        theirs.close()
        os.environ[SERVER] = address_of(ours)
        try:
            yield
        finally:
            os.environ.pop(SERVER, None)
            server.terminate()  # it may be importing; where this process is killed, it sees the end of its standard input
            server.communicate()
