"""`python -m posttrain.runs.forking.server SOCKET MODULE...`: imports the modules once, then forks a process for each request.

It ends when its standard input does: whoever started it is gone then. What it forks are real processes in all else, with their own memory,
environment, session, standard streams and signals.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import random
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from io import TextIOWrapper
from typing import NoReturn

from posttrain.runs.forking.request import NUMBER, Request, read_by_imports
from posttrain.runs.quiet import quiet_libraries
from posttrain.runs.threads import may_watch

MOST_FDS = 5
Fds = list[int]


class Server:
    """Answers requests.

    line: each message brings file descriptors: of the request, of the answer, and of standard input, output and error.
    before: the environment that the imported modules found.
    """

    def __init__(self, line: socket.socket, before: Mapping[str, str]) -> None:
        self.line, self.before = line, read_by_imports(before)
        now = read_by_imports(os.environ)
        self.added = {name: value for name, value in now.items() if self.before.get(name) != value}
        self.answers: dict[int, tuple[int, int]] = {}  # by descriptor of a process: its number, and where to say how it ended

    def serve(self) -> tuple[Request, Fds] | None:
        """Returns in each forked process what it is to do, with its standard streams, and at the end, in this one, None."""
        with selectors.DefaultSelector() as events:
            events.register(0, selectors.EVENT_READ)
            events.register(self.line, selectors.EVENT_READ)
            while True:
                for key, _ in events.select():
                    if key.fd == 0:
                        return None
                    if key.fd in self.answers:
                        events.unregister(key.fd)
                        self._bury(key.fd)
                    elif child := self._answer(events):
                        return child

    def fits(self, request: Request) -> bool:
        """Whether a fresh process would have imported the same: its environment is as this one's was before, or as imports left it."""
        asked = read_by_imports(request.environment)
        left = {**self.before, **self.added}
        return all(asked.get(name) in (self.before.get(name), left.get(name)) for name in {*self.before, *asked})

    def _answer(self, events: selectors.BaseSelector) -> tuple[Request, Fds] | None:
        _, fds, _, _ = socket.recv_fds(self.line, 1, MOST_FDS)
        asked, answer, *streams = fds
        with open(asked, "rb") as file:
            request = Request.read(file.read())
        fits = self.fits(request)
        number = self._fork() if fits else None
        if number == 0:
            for fd, (_, other) in self.answers.items():
                os.close(fd)
                os.close(other)
            os.close(answer)
            return request, streams
        with suppress(BrokenPipeError):  # who asked is gone; the process sees that at its standard input
            os.write(answer, NUMBER.pack(number or 0))
        for fd in streams:
            os.close(fd)
        if number:
            watched = os.pidfd_open(number)
            self.answers[watched] = (number, answer)
            events.register(watched, selectors.EVENT_READ)
        else:
            os.close(answer)
        return None

    def _fork(self) -> int:
        """0 in the process that is made: no signal reaches it before `become`, for who asked may have blocked some."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        number = os.fork()
        if number:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return number

    def _bury(self, watched: int) -> None:
        number, answer = self.answers.pop(watched)
        code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
        with suppress(BrokenPipeError):
            os.write(answer, NUMBER.pack(code))
        os.close(answer)
        os.close(watched)


def become(request: Request, streams: Fds, added: Mapping[str, str]) -> None:
    """Make this forked process what a fresh one would be: session, streams, folder, environment, threads, random numbers."""
    os.setsid()
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())
    os.chdir(request.folder)
    if not sys.flags.safe_path:
        sys.path[0] = request.folder  # as `python -m` does
    os.sched_setaffinity(0, request.cores)
    signal.pthread_sigmask(signal.SIG_SETMASK, request.blocked)
    os.environ.clear()
    os.environ.update({**added, **request.environment})
    random.seed()
    _settle_libraries(request.environment)


def _settle_libraries(environment: Mapping[str, str]) -> None:
    """What libraries read from the environment while they are imported, or draw then."""
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if ranks := sys.modules.get("lightning.fabric.utilities.rank_zero"):
        ranks.rank_zero_only.rank = int(environment.get("RANK", "0"))
    if torch := sys.modules.get("torch"):
        torch.seed()
        threads = environment.get("OMP_NUM_THREADS", "")
        if threads.isdecimal() and int(threads):
            torch.set_num_threads(int(threads))


def main(arguments: list[str]) -> int:
    """Serve until the end; in a forked process, do what was asked. Returns the exit code."""
    before = dict(os.environ)
    may_watch()  # what is forked does: a thread would not survive it
    quiet_libraries()
    line = socket.socket(fileno=int(arguments[0]))
    gc.disable()  # what is imported stays; looking through it took a tenth of the time
    for name in arguments[1:]:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    server = Server(line, before)
    child = server.serve()
    line.close()
    if child is None:
        return 0
    become(*child, server.added)
    module = importlib.import_module(child[0].module)
    sys.argv = [str(module.__file__), *child[0].arguments]
    try:
        code: int = module.main(sys.argv[1:])
    except SystemExit as ended:
        if not isinstance(ended.code, int):
            raise
        code = ended.code
    return leave(code)


def leave(code: int) -> NoReturn:
    """End this forked process as the interpreter would, but without taking apart all that was imported, which takes it a second.

    Threads are waited for, functions of `atexit` called, and streams flushed, as `multiprocessing` ends what it forked.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or nobody reads it any more
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
