"""Stopping on SIGINT, SIGTERM and SIGUSR2 at the end of a step, never in the middle of one."""

from __future__ import annotations

import logging
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)

# Of several the last named here counts: a cluster's SIGUSR2 (stop, to be continued) may come with a SIGTERM.
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
CONTINUED = 128 + signal.SIGUSR2  # exit code of a run that its cluster stopped and will start again


class StopRequest:
    """Remembers the stop signal. A second SIGINT interrupts at once; what the last checkpoint holds is safe.

    agreed: whether all ranks know of it, and stop at this step's end.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.agreed = False

    @property
    def exit_code(self) -> int:
        """128 + signal: 130 for SIGINT, 143 for SIGTERM, 140 for SIGUSR2; 0 while nothing was asked."""
        return 0 if self.signal is None else 128 + self.signal

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        first = self.signal is None
        if not first and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._note(number)
        if first:
            log.warning("%s: finishing this step, then saving a checkpoint (Ctrl-C again stops at once)", signal.Signals(number).name)

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
    """A StopRequest that owns the signals inside the block; the handlers before it return afterwards."""
    request = StopRequest()
    before = {number: signal.getsignal(number) for number in HANDLED}
    request.install()
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
