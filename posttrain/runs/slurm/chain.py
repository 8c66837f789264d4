"""The jobs of a sweep in which pipelines are chains: a job for each stage, which waits for the one before it.

A stage that several pipelines share is one job, on which all of them wait; the last stage's job is each pipeline's own, since it closes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from posttrain.runs.files import write_atomic
from posttrain.runs.slurm.request import Request
from posttrain.runs.sweep_record import JOBS, JobRecord, Outcome, SweepRecord


@dataclass(frozen=True)
class Link:
    """A job to be submitted, or one of an earlier command that is still there.

    run: number of its run in the record. stage: number of the stage, None for a run that is a job as a whole. key: of the stage.
    is_last: whether the run has ended with it. after: links that must have ended well before it starts. behind: links that must have
    ended, however. slurm_id: of one that is there.
    """

    name: str
    run: int | None
    request: Request
    stage: int | None = None
    key: str | None = None
    is_last: bool = True
    after: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()
    slurm_id: str | None = None


@dataclass(frozen=True)
class Wish:
    """A run before it is submitted. requests: one for a run that is a single job, else one a stage. config: of the run.

    slurm_id: of the job in which an earlier command left it running, or waiting; of a chain, its last one.
    """

    name: str
    config: Mapping[str, Any]
    requests: Sequence[Request]
    slurm_id: str | None = None

    @property
    def is_chain(self) -> bool:
        """Whether its stages are jobs of their own."""
        return bool(self.config["stages"]) and self.requests[0].stages == "chained"


def links_of(wishes: Sequence[Wish], there: Sequence[JobRecord] = ()) -> list[Link]:
    """The jobs of all runs, each after those that it waits for. No more than `array_parallelism` runs are under way at once.

    there: stages that are jobs of earlier commands, and have not ended.
    """
    links = [Link(stage.name, None, wishes[0].requests[0], key=stage.key, slurm_id=stage.slurm_id) for stage in there]
    lasts: list[int] = []
    for number, wish in enumerate(wishes):
        width = wish.requests[0].array_parallelism
        behind = (lasts[number - width],) if number >= width else ()
        if wish.slurm_id is not None:
            links.append(Link(wish.name, number, wish.requests[0], slurm_id=wish.slurm_id))
        elif wish.is_chain:
            _add_stages(links, number, wish, behind)
        else:
            links.append(Link(wish.name, number, wish.requests[0], behind=behind))
        lasts.append(len(links) - 1)
    return links


def _add_stages(links: list[Link], run: int, wish: Wish, behind: tuple[int, ...]) -> None:
    from posttrain.runs.pipeline.chained import is_made
    from posttrain.runs.pipeline.wanted import likely_keys, place_of

    nodes, keys, before = wish.config["stages"], likely_keys(wish.config), tuple[int, ...]()
    same = [tuple(number for number, link in enumerate(links) if link.key == key)[:1] for key in keys]
    begun = max((stage for stage in range(len(nodes) - 1) if same[stage]), default=0)  # what is before it is waited for by that job
    for stage, key in enumerate(keys[begun:], begun):
        last = stage + 1 == len(nodes)
        if same[stage] and not last:
            before = same[stage]
        elif last or not is_made(wish.config, stage, key):
            name, after = f"{wish.name}/{place_of(nodes, stage)}", tuple(dict.fromkeys((*before, *same[stage])))
            links.append(Link(name, run, wish.requests[stage], stage, key, last, after, behind))
            before = (len(links) - 1,)


def dependency(link: Link, ids: Sequence[str]) -> str:
    """The link's sbatch dependency; empty where it waits for nothing. ids: of all links before it."""
    well = [f"afterok:{':'.join(ids[number] for number in link.after)}"] if link.after else []
    ended = [f"afterany:{':'.join(ids[number] for number in link.behind)}"] if link.behind else []
    return ",".join([*well, *ended])


def depending(request: Request, clause: str) -> Request:
    """The request of a job that waits so, beside what the user's own sbatch options say; SLURM cancels it where that can never be."""
    if not clause:
        return request
    own = request.sbatch or {}
    given = [str(own["dependency"])] if "dependency" in own else []
    return replace(request, sbatch={**own, "dependency": ",".join([*given, clause]), "kill-on-invalid-dep": "yes"})


def stages_recorded(record: SweepRecord, links: Sequence[Link]) -> SweepRecord:
    """The record with the stages that are jobs; each gets a file beside its pipeline's that says which stage it is."""
    runs = dict(zip((link.name for link in links), _runs_of(record, links), strict=True))
    kept = [replace(stage, runs=tuple(dict.fromkeys((*stage.runs, *runs.get(stage.name, ()))))) for stage in record.stages]
    made = {link.name: _stage_record(record, link, runs[link.name]) for link in links if link.stage is not None}
    return replace(record, stages=(*(stage for stage in kept if stage.name not in made), *made.values()))


def _stage_record(record: SweepRecord, link: Link, runs: Sequence[str]) -> JobRecord:
    assert link.run is not None
    job, place = record.jobs[link.run], link.name.rsplit("/", 1)[1]
    file = record.folder / JOBS / f"{job.file.stem}-{place}.stage"
    Outcome(file).clear()
    write_atomic(file, yaml.safe_dump({"pipeline": str(job.file), "stage": link.stage}))
    return JobRecord(link.name, Path(job.folder) / place, file, key=link.key, runs=tuple(runs))


def _runs_of(record: SweepRecord, links: Sequence[Link]) -> list[list[str]]:
    """For each link the names of all runs that need it."""
    needed: list[set[int]] = []
    for link in links:
        needed.append({number for before in link.after for number in (before, *needed[before])})
    found: list[list[str]] = [[] for _ in links]
    for number, link in enumerate(links):
        for place in (number, *needed[number]) if link.run is not None else ():
            name = record.jobs[link.run or 0].name
            found[place] += [] if name in found[place] else [name]
    return found
