"""The system calls the guards need, through ctypes. Every one raises OSError when the machine refuses it."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import sys
from typing import Any

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 36, 38
SECCOMP_MODE_FILTER = 2
CAPABILITY_VERSION = 0x20080522
LAST_CAPABILITY = 63

X86 = platform.machine() == "x86_64"
LINUX = sys.platform.startswith("linux") and platform.machine() in ("x86_64", "aarch64") and sys.maxsize > 2**32
PIVOT_ROOT = 155 if X86 else 41
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446

_libc: Any = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: Any) -> int:
    """A system call by its number; integers travel as 64 bits, pointers as ctypes objects."""
    return _checked(_libc.syscall(ctypes.c_long(number), *(_word(argument) for argument in arguments)), f"system call {number}")


def _word(argument: Any) -> Any:
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def prctl(option: int, *arguments: Any) -> None:
    """prctl(2)."""
    words = [_word(argument) for argument in arguments] + [ctypes.c_long(0)] * (4 - len(arguments))
    _checked(_libc.prctl(option, *words), f"prctl {option}")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """setns(2)."""
    _checked(_libc.setns(fd, kind), "setns")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _checked(_libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]), f"mount {target}")


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2)."""
    syscall(PIVOT_ROOT, ctypes.c_char_p(os.fsencode(new)), ctypes.c_char_p(os.fsencode(old)))


def unmount(target: str) -> None:
    """umount2(2), at once and with all that is below."""
    _checked(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def die_with_parent() -> None:
    """SIGKILL to this process when the thread that forked it ends. Lost when the user id changes."""
    prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def drop_capabilities() -> None:
    """Gives up every capability, for good."""
    for capability in range(LAST_CAPABILITY + 1):
        _libc.prctl(PR_CAPBSET_DROP, ctypes.c_long(capability), ctypes.c_long(0), ctypes.c_long(0), ctypes.c_long(0))
    header = ctypes.create_string_buffer(struct.pack("=Ii", CAPABILITY_VERSION, 0))
    _checked(_libc.capset(header, ctypes.create_string_buffer(24)), "capset")


def map_user(proc: int, uid: int, gid: int) -> None:
    """After `unshare(NEWUSER)`: the same user and group inside as outside. proc: descriptor of /proc."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        fd = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
