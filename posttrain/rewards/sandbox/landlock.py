"""Landlock: which files a process may read and write, no TCP, no signals to others; works without any privilege."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

from posttrain.rewards.sandbox.linux import LANDLOCK_ADD, LANDLOCK_CREATE, LANDLOCK_RESTRICT, syscall

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
MAKE_CHAR, MAKE_SOCK, MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
ALL_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
TCP = 3  # bind, connect
SCOPES = 3  # abstract sockets, signals
NETWORK_VERSION, SCOPE_VERSION = 4, 6
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | 1 << 14 | 1 << 15


def version() -> int:
    """The version of Landlock here; 0 where there is none."""
    try:
        return syscall(LANDLOCK_CREATE, 0, 0, 1)
    except OSError:
        return 0


def restrict(readable: Iterable[str], writable: Iterable[str]) -> None:
    """Nothing else is readable or writable for this process from here on. Needs no_new_privs. Paths that do not exist are left out."""
    known = version()
    everything = ALL_FILES[min(known, max(ALL_FILES))]
    fields = [everything, TCP if known >= NETWORK_VERSION else 0, SCOPES if known >= SCOPE_VERSION else 0]
    attributes = struct.pack("=3Q", *fields)[: 8 if known < NETWORK_VERSION else 16 if known < SCOPE_VERSION else 24]
    rules = syscall(LANDLOCK_CREATE, ctypes.c_char_p(attributes), len(attributes), 0)
    for path in readable:
        _add(rules, path, READ_FILE | READ_DIR)
    for path in writable:
        _add(rules, path, everything & ~(EXECUTE | MAKE_CHAR | MAKE_SOCK | MAKE_BLOCK))
    syscall(LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


def _add(rules: int, path: str, access: int) -> None:
    if not os.path.exists(path):
        return
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        allowed = access if os.path.isdir(path) else access & OF_A_FILE
        syscall(LANDLOCK_ADD, rules, 1, ctypes.c_char_p(struct.pack("=Qi", allowed, fd)), 0)
    finally:
        os.close(fd)
