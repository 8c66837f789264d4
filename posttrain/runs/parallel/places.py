"""Who gets which devices of this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.cores import CORES, usable_cores
from posttrain.runs.machine import gpu_count

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Need:
    """What a run takes: so many GPUs, or ranks on a CPU; for a pipeline, of the stage that takes most."""

    gpus: int
    ranks: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Need:
        """Of a run's config."""
        hardware = [node["config"]["hardware"] for node in config["stages"] or ()] or [config["hardware"]]
        gpus = [one["devices"] for one in hardware if one["accelerator"] == "cuda"]
        return cls(max(gpus, default=0), max(one["devices"] for one in hardware))


class Places:
    """What is free.

    needs: of all runs of the command, also of those that have ended before: the cores that a run gets do not depend on what is left to do,
    so that it is the same after a kill. n_jobs: runs at once, at most; None for as many as there is place for.
    """

    def __init__(self, needs: Sequence[Need], n_jobs: int | None) -> None:
        self.free = visible_gpus()
        cores = usable_cores(os.environ)
        on_gpus = all(need.gpus for need in needs)
        # on a CPU each rank wants a core; what needs GPUs is limited by these
        widest = max((need.ranks for need in needs if not need.gpus), default=1)
        fitting = len(self.free) // min(need.gpus for need in needs) if on_gpus else cores // widest
        self.most = max(1, min(len(needs), fitting if n_jobs is None else n_jobs))
        self.cores = max(1, cores // self.most)
        self.taken: dict[int, list[str]] = {}

    def take(self, number: int, need: Need) -> bool:
        """Give run `number` its devices; False where they are not free now."""
        if len(self.taken) >= self.most or need.gpus > len(self.free):
            return False
        self.taken[number], self.free = self.free[: need.gpus], self.free[need.gpus :]
        return True

    def leave(self, number: int) -> None:
        """The run has ended."""
        self.free = sorted([*self.free, *self.taken.pop(number)], key=lambda name: (len(name), name))

    def environment(self, number: int, base: Mapping[str, str]) -> dict[str, str]:
        """Of the run's process: its GPUs, and its share of the cores where `base` does not give it fewer threads."""
        given = base.get("OMP_NUM_THREADS", "")
        threads = min(self.cores, int(given)) if given.isdecimal() and int(given) else self.cores
        ours = {"OMP_NUM_THREADS": str(threads), CORES: str(self.cores)}
        return {**base, **ours, **({VISIBLE: ",".join(self.taken[number])} if self.taken[number] else {})}


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    named = os.environ.get(VISIBLE)
    names = [str(number) for number in range(gpu_count())] if named is None else [name.strip() for name in named.split(",")]
    return names[: gpu_count()]
