"""A reused stage in MLflow: a run of this pipeline's, with what the stage came to when it was made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.models.integrity import read_record
from posttrain.runs import targets
from posttrain.runs.pipeline.store import ARTIFACT
from posttrain.runs.tracking.base import RunInfo, Tracker
from posttrain.runs.tracking.journal import Journal
from posttrain.runs.tracking.sweep import is_mlflow

RECORDS = ("config.yaml", "metrics.jsonl", "throughput.jsonl", "result.json")
PLOTS = ("loss.png", "reward.png")


def mirror(stage: Path, place: Path, config: Mapping[str, Any]) -> str | None:
    """Send a finished stage's records as a run of their own, once; returns its id. Nothing without MLflow, or where the stage's own run
    hangs under the same parent already.

    place: the folder of the copies. config: of the stage, with the `tracking` node that it would have had.
    """
    tracking = config["tracking"]
    if not is_mlflow(tracking) or tracking.get("parent_run_id") in _parents(stage):
        return None
    if "finish" in [event["event"] for event in Journal(place).events()]:
        return None
    place.mkdir(parents=True, exist_ok=True)
    for name in (name for name in (*RECORDS, *PLOTS) if (stage / name).is_file()):
        shutil.copyfile(stage / name, place / name)
    tags = {"reused": "true", "made_in": str(stage), **_digests(stage)}
    node = {key: value for key, value in tracking.items() if key != "name"} | {"system_seconds": None}
    tracker: Tracker = targets.build(node)
    tracker.start(RunInfo(output_dir=place, name=place.name, config=config, tags=tags))
    for name in (name for name in PLOTS if (place / name).is_file()):
        tracker.figure(place / name)
    tracker.finish("finished")
    return tracker.run_id


def _parents(stage: Path) -> list[str | None]:
    """The parents of the runs that the stage was sent as."""
    return [event["tags"].get("mlflow.parentRunId") for event in Journal(stage).events() if event["event"] == "start"]


def _digests(stage: Path) -> dict[str, str]:
    return {"data": json.dumps(read_record(stage / ARTIFACT)["data"], sort_keys=True)}
