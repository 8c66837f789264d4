"""Runs programs that nobody has read against tests, so that they can neither harm the machine nor forge the verdict.

Two processes for each program, both enclosed, each from the other too. The *program's* holds the program and answers calls
(`solution.py`). The *tests'* holds the tests and stand-ins for the program's functions (`driver.py`, `remote.py`); arguments and results
cross as plain data (`codec.py`), so that every comparison is between values of Python's own types in a process that no object of the
program ever enters. All that a program can do to the verdict is to return a wrong value. Printing, exiting, patched builtins, lying
`__eq__`, written descriptors, frames and garbage lists change nothing, and the tests are in no memory or file that the program can read.

Classes of the program are used as any, but for what their objects alone could tell: a test that asks whether two of them are equal, or
catches or extends a class, says nothing (`unusable`); one that asks which of two comes first fails.

Guards (`active_guards()` names those that this machine allows):
own-process, clean-environment, resource-limits: always. Processor time, memory, file size, descriptors, threads; wall time by SIGKILL.
namespaces: pid, mount, network, IPC, host name. No network device; a read-only root with the standard library and nothing else of this
    machine; an own, bounded, vanishing /tmp; no other process visible; whatever a program starts ends with it.
user-namespace: as namespaces, for a trainer that is not root. network-namespace: only the network, where no more is allowed.
user-id: each process is a user of its own, where the trainer is root. seccomp: no sockets, new processes, programs, signals to others,
kernel interfaces. landlock: files outside the temporary folder cannot be written, and only the standard library read.
"""

from posttrain.rewards.sandbox.answer import defines, program_of
from posttrain.rewards.sandbox.assertions import tested_names
from posttrain.rewards.sandbox.client import Sandbox, SandboxError, active_guards, run_check, run_tests
from posttrain.rewards.sandbox.limits import Limits, Outcome

__all__ = [
    "Limits",
    "Outcome",
    "Sandbox",
    "SandboxError",
    "active_guards",
    "defines",
    "program_of",
    "run_check",
    "run_tests",
    "tested_names",
]
