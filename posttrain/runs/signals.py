"""Stopping on SIGINT, SIGTERM and SIGUSR2: while steps are made at the end of one, never in the middle; before and after them at once."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

log = logging.getLogger(__name__)

# Of several the last named here counts: a cluster's SIGUSR2 (stop, to be continued) may come with a SIGTERM.
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
CONTINUED = 128 + signal.SIGUSR2  # exit code of a run that its cluster stopped and will start again


class Stopped(BaseException):
    """A stop signal ends the run now. Not a KeyboardInterrupt: Lightning's trainer would end the process with 1 for that."""

    def __init__(self, request: StopRequest) -> None:
        super().__init__()
        self.request = request

    @property
    def code(self) -> int:
        """The exit code, by the signals so far."""
        return self.request.exit_code


class StopRequest:
    """Remembers the stop signal, and raises Stopped where nothing has to be saved first. So does a second SIGINT, at any time.

    heeds: when a signal stops the run: at once; at the end of a step, which `CheckpointWriter` sees to; never, since all is done.
    agreed: whether all ranks know of it, and stop at this step's end.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.agreed = False
        self.heeds: Literal["at once", "at a step's end", "never"] = "at once"

    @property
    def exit_code(self) -> int:
        """128 + signal: 130 for SIGINT, 143 for SIGTERM, 140 for SIGUSR2; 0 while nothing was asked."""
        return 0 if self.signal is None else 128 + self.signal

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        first = self.signal is None
        self._note(number)
        if self.heeds == "never":
            return
        if (self.heeds == "at once") if first else (number == signal.SIGINT):
            raise Stopped(self)
        if first:
            log.warning("%s: finishing this step, then saving a checkpoint (Ctrl-C again stops at once)", signal.Signals(number).name)

    def begin_steps(self) -> None:
        """From now on a signal waits for the end of a step."""
        self.heeds = "at a step's end"

    def end_steps(self) -> None:
        """From now on a signal stops the run at once: what it has is saved. Raises Stopped if one came too late for the last step."""
        self.heeds = "at once"
        if self.signal is not None and not self.agreed:
            raise Stopped(self)

    @contextmanager
    def before_errors(self) -> Iterator[None]:
        """Raises Stopped instead of an error inside the block where a signal was given: other ranks have left for it, in the middle of what
        this one was waiting for."""
        try:
            yield
        except Exception:
            self._take_turn()
            raise

    def _take_turn(self) -> None:
        """A handler runs when Python code does: of a signal that came while this process waited in a collective, here."""

    def ignore(self) -> None:
        """The run is done, and a signal changes nothing about that."""
        self.heeds = "never"

    def agree(self, numbers: Collection[int]) -> bool:
        """Take over the signals that the ranks got, the same on each, so that all end alike; whether there are any."""
        for number in numbers:
            self._note(number)
        self.agreed = self.agreed or bool(numbers)
        return self.agreed

    def _note(self, number: int) -> None:
        if self.signal is None or HANDLED.index(number) > HANDLED.index(self.signal):
            self.signal = number

    def install(self) -> None:
        """Take over the signals; again after Lightning has put its own handlers in front."""
        for number in HANDLED:
            signal.signal(number, self)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """A StopRequest that owns the signals inside the block; the handlers before it return afterwards. Only the main thread may own them."""
    request = StopRequest()
    handled = HANDLED if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in handled}
    if handled:
        request.install()
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
