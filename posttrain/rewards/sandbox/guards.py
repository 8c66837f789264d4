"""Which guards this machine allows: each is tried in a forked process before it is relied on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NoReturn

from posttrain.rewards.sandbox import landlock, linux
from posttrain.rewards.sandbox.cell import LANDLOCK, NAMESPACES, NETWORK, SECCOMP, USER_ID, USER_NAMESPACE, Guarded, enter
from posttrain.rewards.sandbox.limits import Limits
from posttrain.rewards.sandbox.paths import TEMPORARY, Visible, enter_small_root, visible

ISOLATIONS = ({NAMESPACES}, {NAMESPACES, USER_NAMESPACE}, {NETWORK}, {NETWORK, USER_NAMESPACE})
OTHERS = (USER_ID, LANDLOCK, SECCOMP)
TRIAL_USER = 0x5FFFFFFF
SHARED = linux.NEWNET | linux.NEWIPC | linux.NEWUTS


def settle(without: frozenset[str]) -> tuple[Guarded, int | None]:
    """Moves this process behind the strongest isolation that works and names all guards that do, but for those to leave out.

    Returns them and a descriptor of the pid namespace of this process, None without namespaces. The process that goes on may be a fork
    of the one that called; that one only waits for it.
    """
    if not linux.LINUX:
        return Guarded(frozenset(), Visible((), ())), None
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    base = Guarded(frozenset(), visible(), os.open("/proc", os.O_PATH))
    for isolation in ISOLATIONS:
        candidate = replace(base, guards=frozenset(isolation))
        if not without & isolation and works(partial(_try_isolation, candidate)):
            base = candidate
            break
    own_pids = isolate(base)
    for guard in OTHERS:
        more = replace(base, guards=base.guards | {guard})
        if guard not in without and _possible(guard, base.guards) and works(partial(_try_cell, more, own_pids)):
            base = more
    return base, own_pids


def _possible(guard: str, guards: frozenset[str]) -> bool:
    if guard == USER_ID:
        return os.getuid() == 0 and USER_NAMESPACE not in guards
    return guard != LANDLOCK or landlock.version() > 0


def isolate(guarded: Guarded) -> int | None:
    """Enters namespaces; with pid namespaces in a forked process, the first of its namespace, whose end is the end of all in it."""
    guards, proc = guarded.guards, guarded.proc
    user = linux.NEWUSER if USER_NAMESPACE in guards else 0
    uid, gid = os.getuid(), os.getgid()
    if NETWORK in guards:
        linux.unshare(linux.NEWNET | user)
        if user and proc is not None:
            linux.map_user(proc, uid, gid)
        return None
    if NAMESPACES not in guards or proc is None:
        return None
    linux.unshare(linux.NEWNS | linux.NEWPID | SHARED | user)
    if user:
        linux.map_user(proc, uid, gid)
    _fork_first()
    own_pids = os.open("self/ns/pid", os.O_RDONLY, dir_fd=proc)
    enter_small_root(guarded.seen)
    return own_pids


def _fork_first() -> None:
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    pid = os.fork()
    if pid:
        _watch(pid, parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    linux.die_with_parent()


def _watch(pid: int, parent: int) -> NoReturn:
    """Ends when the child ends, with its exit code, or when the process that started this one is gone."""
    while os.getppid() == parent:
        signal.sigtimedwait({signal.SIGCHLD}, 0.5)
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            os._exit(abs(os.waitstatus_to_exitcode(status)))
    os._exit(1)


def works(trial: Callable[[], None]) -> bool:
    """Whether `trial` returns, in a process of its own."""
    pid = os.fork()
    if pid == 0:
        _exit_after(trial)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _exit_after(trial: Callable[[], None]) -> NoReturn:
    try:
        trial()
    except Exception:
        os._exit(1)
    os._exit(0)


def _try_isolation(guarded: Guarded) -> None:
    own_pids = isolate(guarded)
    if NAMESPACES in guarded.guards:
        _try_cell(guarded, own_pids)


def _try_cell(guarded: Guarded, own_pids: int | None) -> None:
    """A whole enclosed process, in which the standard library must still be readable."""
    if own_pids is not None:
        linux.unshare(linux.NEWPID)
    if not works(partial(_enclosed, guarded)):
        raise OSError("refused")


def _enclosed(guarded: Guarded, keep: Sequence[int] = ()) -> None:
    enter(guarded, Limits(), keep, TEMPORARY, TRIAL_USER)
    with open(os.__file__, encoding="utf-8"), open("/dev/null", "wb"):
        return
