"""What a pipeline came to: the sum of its stages, as one result.json; lines and a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from posttrain.runs.pipeline.shares import spent_by, unit_of
from posttrain.runs.progress import duration, result_rows
from posttrain.runs.records import SPECIAL, Result, Status

MOST = 2  # figures of a stage in the closing table


@dataclass(frozen=True)
class Ended:
    """A stage that was made, reused, or begun. result: of its run, None where it left none."""

    name: str
    place: Path
    folder: Path
    key: str
    reused: bool
    status: Status
    config: Mapping[str, Any]
    result: Mapping[str, Any] | None

    def record(self) -> dict[str, Any]:
        """As it stands in the pipeline's result.json."""
        known = self.result or {}
        entered = known.get("entering") or {}
        counts = {name: known.get(name, 0) + entered.get(name, 0) for name in ("flops", "tokens", "train_seconds")}
        return {"name": self.name, "folder": str(self.folder), "hash": self.key, "reused": self.reused, **counts, "status": self.status}


def result_of_all(config: Mapping[str, Any], stages: Sequence[Ended], status: Status, parent: str | None) -> Result:
    """The pipeline's result: counts are sums, also over reused stages and a run that one starts from (entering); metrics and artifact are
    the last stage's."""
    known = [stage.result for stage in stages if stage.result is not None]
    last = known[-1] if known and status == "finished" else {}
    records = [stage.record() for stage in stages]
    seconds = sum(float(record["train_seconds"]) for record in records)
    tokens = sum(int(record["tokens"]) for record in records)
    return Result(
        status=status,
        method=config["method"]["name"],
        steps=sum(int(result["steps"]) for result in known),
        examples=sum(int(result["examples"]) for result in known),
        tokens=tokens,
        flops=sum(float(record["flops"]) for record in records),
        train_seconds=seconds,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        peak_memory_bytes=max((int(result["peak_memory_bytes"]) for result in known), default=0),
        metrics=numbers(last.get("metrics", {})),
        artifact=last.get("artifact"),
        mlflow_run_id=parent,
        stages=records,
        budget=_budget(config, stages),
    )


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a result.json as numbers."""
    return {name: SPECIAL[value] if isinstance(value, str) else value for name, value in metrics.items()}


def _budget(config: Mapping[str, Any], stages: Sequence[Ended]) -> dict[str, Any] | None:
    unit = unit_of(config["budget"])
    if unit is None:
        return None
    spent = sum(spent_by(unit, stage.result, stage.config) for stage in stages if stage.result is not None)
    return {"unit": unit, "asked": config["budget"][unit], "spent": spent}


def headline(result: Mapping[str, Any]) -> str:
    """A stage's most telling figures: of held-out data, and first those that were measured before and after it."""
    fields = {name: value for name, value in result.items() if name in Result.__dataclass_fields__}
    rows = result_rows(Result(**{**fields, "metrics": numbers(result["metrics"])}))[:-2]
    told = sorted(rows, key=lambda row: (not row[0].startswith("eval/"), not row[0].startswith("val/"), "->" not in row[1]))
    return ", ".join(f"{name} {value}" for name, value in told[:MOST])


def table_of(stages: Sequence[Ended], title: str, shown: Any) -> Table:
    """A row a stage: how it ended, what it came to, where it lies."""
    table = Table("stage", "status", "steps", "time", "result", "folder", title=title, title_justify="left", box=None)
    for stage in stages:
        result = stage.result or {}
        status = "reused" if stage.reused else stage.status
        time = duration(float(result["train_seconds"])) if result else ""
        figures = headline(result) if result and stage.status == "finished" else ""
        table.add_row(stage.name, status, str(result.get("steps", "")), time, figures, shown(stage.place))
    return table
