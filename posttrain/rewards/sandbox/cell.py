"""What a forked process does before it runs foreign code: it gives up, in order, everything it does not need.

A guard that was found to work at the start and fails now ends the process: nothing runs with less than was announced.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.rewards.sandbox import landlock, linux, seccomp
from posttrain.rewards.sandbox.limits import Limits
from posttrain.rewards.sandbox.paths import Visible, mount_temporary

NAMESPACES, USER_NAMESPACE, NETWORK = "namespaces", "user-namespace", "network-namespace"
USER_ID, LANDLOCK, SECCOMP = "user-id", "landlock", "seccomp"
MEGABYTE = 2**20


@dataclass(frozen=True)
class Guarded:
    """guards: which of the above to use. seen: visible files. proc: descriptor of /proc, None where it is not needed."""

    guards: frozenset[str]
    seen: Visible
    proc: int | None = None


def enter(guarded: Guarded, limits: Limits, keep: Sequence[int], folder: str, uid: int) -> None:
    """Encloses this process. keep: descriptors that stay open. folder: its temporary folder. uid: user to become, if it may."""
    guards = guarded.guards
    os.setsid()
    os.umask(0o077)
    own = uid if USER_ID in guards else os.getuid()
    if NAMESPACES in guards:
        _own_mounts(guarded, limits, own)
    _close_all_but(keep)
    os.chdir(folder)
    _clean(folder)
    limit_resources(limits)
    if USER_ID in guards:
        become(uid)
    if linux.LINUX:
        _give_up_privileges()
    if LANDLOCK in guards:
        landlock.restrict(guarded.seen.readable, [folder, "/dev/null"])
    if SECCOMP in guards:
        seccomp.install()


def _own_mounts(guarded: Guarded, limits: Limits, own: int) -> None:
    group = own if USER_ID in guarded.guards else os.getgid()
    if USER_NAMESPACE in guarded.guards and guarded.proc is not None:
        linux.unshare(linux.NEWNS | linux.NEWUSER)  # a namespace of its own counts its threads apart
        linux.map_user(guarded.proc, own, group)
    else:
        linux.unshare(linux.NEWNS)
    mount_temporary(limits.disk, own, group)


def _close_all_but(keep: Sequence[int]) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard, inheritable=True)
    start = 3
    for fd in [*sorted(keep), os.sysconf("SC_OPEN_MAX")]:
        os.closerange(start, fd)
        start = fd + 1


def _clean(folder: str) -> None:
    os.environ.clear()
    os.environ.update(HOME=folder, TMPDIR=folder, PATH="/usr/bin:/bin", LANG="C.UTF-8")
    sys.argv[:] = sys.orig_argv[:] = [""]
    for name in [name for name in sys.modules if name.split(".", maxsplit=1)[0] == "posttrain"]:
        del sys.modules[name]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL if number != signal.SIGPIPE else signal.SIG_IGN)


def limit_resources(limits: Limits) -> None:
    """The limits every POSIX system has."""
    bounds = {
        "RLIMIT_CPU": limits.cpu,
        "RLIMIT_AS": limits.memory * MEGABYTE,
        "RLIMIT_FSIZE": limits.file * MEGABYTE,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_NPROC": limits.threads,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
    }
    for name, bound in bounds.items():
        if name in vars(resource):  # MEMLOCK and MSGQUEUE are not everywhere
            kind = getattr(resource, name)
            _, hard = resource.getrlimit(kind)
            value = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
            resource.setrlimit(kind, (value, value))


def become(uid: int) -> None:
    """Another user, without groups."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _give_up_privileges() -> None:
    linux.drop_capabilities()
    linux.die_with_parent()
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
