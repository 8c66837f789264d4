"""How the jobs of a sweep stand, from SLURM's queue where there is one, and from the files that runs leave."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from posttrain.runs.folder_lock import is_taken
from posttrain.runs.records import Status, read_metrics
from posttrain.runs.slurm import queue
from posttrain.runs.slurm.follow import word
from posttrain.runs.sweep_record import JOBS, JobRecord, Outcome, SweepRecord

WORDS = {"PENDING": "waiting", "RUNNING": "running", "COMPLETING": "ending", "SUSPENDED": "suspended", "REQUEUED": "waiting"}

UNDER_WAY = ("running", "ending", "suspended", "waiting to go on", "waiting")


@dataclass(frozen=True)
class Row:
    """One job. state: SLURM's word for it, or empty. is_stage: of a pipeline that has a row of its own."""

    name: str
    slurm_id: str
    state: str
    status: str
    step: str
    loss: str
    is_stage: bool = False


def rows(record: SweepRecord, states: Mapping[str, str] | None) -> list[Row]:
    """Every run of a sweep as it stands now, below a pipeline its stages where they are jobs. states: SLURM's, by its ids; None where it
    cannot be asked.
    """
    found: list[Row] = []
    for job in record.jobs:
        stages = [_row(stage, states) for stage in record.stages_of(job.name)]
        own = _row(job, states)
        found += [_pipeline_row(job, own, stages), *(replace(row, name=f"  {row.name}") for row in stages)] if stages else [own]
    return found


def _pipeline_row(job: JobRecord, own: Row, stages: Sequence[Row]) -> Row:
    """A pipeline whose stages are jobs: under way as soon as one of them is."""
    begun = [row for row in stages if row.step]
    under_way = sorted((row.status for row in stages if row.status in UNDER_WAY), key=UNDER_WAY.index)
    status = own.status if Outcome(job.file).read() is not None or not under_way else under_way[0]
    step, loss = (begun[-1].step, begun[-1].loss) if begun else ("", "")
    return Row(own.name, "", "", status, step, loss, is_stage=False)


def slurm_states(record: SweepRecord) -> dict[str, str] | None:
    """What SLURM says of the jobs it knows; None where there are none of its jobs, or it is not there.

    Raises:
        NoAnswer: it is there and does not answer.
    """
    return queue.states(record.ids) if record.ids and queue.there() else None


def _row(job: JobRecord, states: Mapping[str, str] | None) -> Row:
    lines = [row for row in read_metrics(job.folder / "metrics.jsonl") if "loss" in row]
    step, loss = (str(lines[-1]["step"]), f"{lines[-1]['loss']:.4g}") if lines else ("", "")
    state = (states or {}).get(job.slurm_id or "", "")
    return Row(job.name, job.slurm_id or "", state, status_of(job, state, known=states is not None), step, loss, bool(job.runs))


def status_of(job: JobRecord, state: str, *, known: bool) -> str:
    """What became of a run: its outcome; else what SLURM says; else what its folder says. known: whether SLURM could be asked."""
    code = Outcome(job.file).read()
    if code is not None:
        return word(code)
    if state in WORDS:
        again = state == "PENDING" and (job.folder / "checkpoints").is_dir()
        return "waiting to go on" if again else WORDS[state]
    if state:
        return "stopped" if state == "CANCELLED" else "failed"
    return _status_in(job.folder, ended=known and job.slurm_id is not None)


def _status_in(folder: Path, *, ended: bool) -> str:
    """The status in a run's folder. ended: SLURM no longer knows the job, so it does not run."""
    if not ended and is_taken(folder):
        return "running"
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if (file := folder / "result.json").is_file() else {}
    return str(result.get("status") or ("lost" if (folder / "config.yaml").is_file() else "cancelled" if ended else "not started"))


def table(record: SweepRecord, found: Sequence[Row]) -> Table:
    """The jobs, a row each; SLURM's columns only where there are such jobs."""
    cluster = any(row.slurm_id for row in found)
    columns = ("run", *(("job", "SLURM") if cluster else ()), "status", "step", "loss")
    made = Table(*columns, title=f"{sum(not row.is_stage for row in found)} runs in {record.folder}", title_justify="left", box=None)
    for row in found:
        made.add_row(row.name, *((row.slurm_id, row.state.lower()) if cluster else ()), row.status, row.step, row.loss)
    return made


def close_parent(record: SweepRecord, found: Sequence[Row]) -> None:
    """Close the sweep's MLflow run where all jobs have ended; once."""
    mark = record.folder / JOBS / "closed"
    if record.parent is None or mark.is_file() or any(Outcome(job.file).read() is None for job in record.jobs):
        return
    from posttrain.runs.tracking.sweep import finish_parent

    status: Status = "finished" if all(row.status == "finished" for row in found) else "failed"
    finish_parent({"tracking": record.tracking}, record.parent, status)
    mark.touch()
