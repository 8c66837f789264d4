"""The artifact a finished run hands on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from posttrain.methods.base import Method
from posttrain.models.artifact import ArtifactRecord
from posttrain.models.integrity import config_hash
from posttrain.runs.files import writing
from posttrain.runs.records import versions
from posttrain.runs.train import Job


def save_run_artifact(job: Job, method: Method, metrics: Mapping[str, float]) -> Path:
    """Write the policy to `artifact/` with its lineage; returns the folder. Raises OSError that says what to do on a full disk."""
    config = job.config
    record = ArtifactRecord(
        method=config["method"]["name"],
        parent=config["model"]["path"] if config["model"]["weights"] == "pretrained" else None,
        data={source.name: source.digest for source in job.prepared.report.sources},
        config_hash=config_hash({key: value for key, value in config.items() if key != "output_dir"}),
        metrics=dict(metrics),
        versions=versions(),
    )
    folder = job.folder / "artifact"
    with writing(folder):
        return method.hand_on(job.tokenizer, folder, record=record)
