"""A command line whose runs are forked from it, so that a study of many small runs starts nothing from nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from posttrain import __main__ as command_line
from posttrain.runs import processes, worker


def main(arguments: Sequence[str]) -> int:
    """`posttrain ARGUMENTS`."""
    processes.run_child = forked  # type: ignore[assignment]
    return command_line.main(list(arguments))


def forked(command: Sequence[str]) -> int:
    """What `python -m posttrain.runs.worker ARGUMENTS` does: it ends with this process, whose end it sees on its standard input."""
    stdin, ours = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        os.dup2(stdin, 0)
        os.setsid()
        os.environ[processes.WITH_PARENT] = "1"
        code = 1
        try:
            code = worker.main(list(command[3:]))
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.close(stdin)
    _, status = os.waitpid(child, 0)
    os.close(ours)
    return os.waitstatus_to_exitcode(status)
