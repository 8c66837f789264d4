"""How CPU threads wait for each other.

OpenMP's threads meet after every operation. One that comes early may spin, awake and at once ready for the next operation, or sleep until
it is woken, which takes longer than many an operation. Alone on its cores a program of two threads trains 9 to 17 % faster where they
spin for milliseconds, as the runtime does by itself. Beside another program that needs a core the spinning takes it from the very thread
that is waited for: 5.0 instead of 3.3 s a step beside one busy loop, and two such programs were seen to run at a quarter of their speed
alone instead of half.

So `spin_while_alone` watches whether the cores suffice, and lets the threads sleep while they do not. The runtime (libgomp) cannot be
told to, but its threads sleep at once while a process has more of them than cores; a second team's, which do nothing, are enough.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

SPINS = "1000"  # a few microseconds
EVERY = 0.5  # seconds between two looks
STAT, MAPS = Path("/proc/stat"), Path("/proc/self/maps")
SLACK = 0.25  # cores that daemons may use for moments
CALM = 4  # looks in a row at which the cores suffice, after which threads spin again


def spin_briefly() -> None:
    """Let OpenMP threads spin only briefly before they sleep, unless the user says otherwise. Before torch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def may_watch() -> bool:
    """Whether it can be seen who else needs the cores, and the user does not say how threads wait. Before torch is imported.

    Where it cannot be seen, threads spin briefly from now on.
    """
    if sys.platform != "linux" or not os.access(STAT, os.R_OK):
        spin_briefly()
    return not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()


def spin_while_alone() -> None:
    """Let this process's OpenMP threads spin while nobody else needs its cores: see `may_watch`, and the module."""
    if may_watch():
        threading.Thread(target=_watch, name="watch for others on these cores", daemon=True).start()


@dataclass(frozen=True)
class Look:
    """Seconds of processor time since the start: of all programs on `cores`, and of this process. at: when."""

    at: float
    busy: float
    own: float
    cores: frozenset[int]

    def others_since(self, last: Look) -> float:
        """Cores that other programs kept busy on average since then."""
        return ((self.busy - last.busy) - (self.own - last.own)) / (self.at - last.at)


def look() -> Look:
    """At the cores that this process may use."""
    cores = frozenset(os.sched_getaffinity(0))
    return Look(time.monotonic(), busy_seconds(STAT.read_text(), cores), time.process_time(), cores)


def busy_seconds(stat: str, cores: frozenset[int]) -> float:
    """Of /proc/stat: user, nice, system, irq and softirq of each of these cores (proc(5))."""
    rows = (line.split() for line in stat.splitlines() if line.startswith("cpu") and line[3].isdigit())
    ticks = sum(int(row[place]) for row in rows if int(row[0][3:]) in cores for place in (1, 2, 3, 6, 7))
    return ticks / os.sysconf("SC_CLK_TCK")


class Manners:
    """Whether threads may spin, by what each look shows. idle: what keeps them from it, while there is something."""

    def __init__(self) -> None:
        self.idle: IdleTeam | None = None
        self.calm = 0

    def see(self, others: float, threads: int, cores: int) -> None:
        """others: cores that other programs kept busy. threads: of this process's team. An idle team makes them one more than cores."""
        crowded = threads > 1 and others + threads > cores + SLACK
        self.calm = 0 if crowded else self.calm + 1
        if crowded and self.idle is None:
            self.idle = IdleTeam(max(cores - threads, 0) + 2)
        elif self.idle is not None and self.calm >= CALM:
            self.idle.end()
            self.idle = None


def team_size() -> int:
    """How many threads an operation of this process takes; 1 before torch is imported."""
    known = getattr(sys.modules.get("torch"), "get_num_threads", None)
    return int(known()) if known else 1


class IdleTeam:
    """So many threads that wait for nothing. None without libgomp."""

    def __init__(self, threads: int) -> None:
        self.ended = threading.Event()
        if runtime := _libgomp(MAPS.read_text()):
            threading.Thread(target=self._wait, args=(runtime, threads), name="idle threads", daemon=True).start()

    def end(self) -> None:
        """Let them go."""
        self.ended.set()

    def _wait(self, runtime: str, threads: int) -> None:
        """A team belongs to the thread that had it made, and goes when that ends. It is made for a function that does nothing."""
        nothing = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)
        ctypes.CDLL(runtime).GOMP_parallel(nothing, None, ctypes.c_uint(threads), ctypes.c_uint(0))
        self.ended.wait()


def _libgomp(maps: str) -> str | None:
    """The OpenMP runtime that this process has loaded, from its /proc/self/maps."""
    paths = (line.split(maxsplit=5)[-1] for line in maps.splitlines() if line.count("/"))
    return next((path for path in paths if Path(path).name.startswith("libgomp")), None)


def _watch() -> None:
    manners, last = Manners(), look()
    while True:
        time.sleep(EVERY)
        now = look()
        if now.cores == last.cores:
            manners.see(now.others_since(last), team_size(), len(now.cores))
        last = now
