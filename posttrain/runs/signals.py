"""Stopping on SIGINT and SIGTERM at the end of a step, never in the middle of one."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)

HANDLED = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Remembers the first stop signal. A second SIGINT interrupts at once; what the last checkpoint holds is safe."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def exit_code(self) -> int:
        """128 + signal: 130 for SIGINT, 143 for SIGTERM; 0 while nothing was asked."""
        return 0 if self.signal is None else 128 + self.signal

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.signal = number
        log.warning("%s: finishing this step, then saving a checkpoint (Ctrl-C again stops at once)", signal.Signals(number).name)

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
