"""The report of a study as artifacts of the MLflow run that its runs are children of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from posttrain.runs.comparison.arms import Arm
from posttrain.runs.comparison.study import FOLDER, Study
from posttrain.runs.tracking.journal import Journal
from posttrain.runs.tracking.sweep import ask_store, is_mlflow
from posttrain.runs.tracking.uris import resolve_uri


def publish(study: Study, arms: Sequence[Arm], files: Sequence[Path]) -> None:
    """Nothing where the study has no parent. A store that does not answer costs a warning: the files lie in the study's folder."""
    uri = next(_stores(arms), None)
    if study.parent is not None and uri is not None:
        request = {"uri": uri, "run_id": study.parent, "files": [str(file) for file in files], "into": FOLDER}
        ask_store("add", request, otherwise=f"the report lies in {files[0].parent} alone")


def _stores(arms: Sequence[Arm]) -> Iterator[str]:
    """Addresses of the store that the runs went to: as they noted it, else as their settings name it."""
    runs = [part for arm in arms for run in arm.runs for part in (run, *run.stages)]
    for run in runs:
        if (state := Journal(run.folder).state()) is not None:
            yield state.uri
    for run in runs:
        if is_mlflow(tracking := run.config["tracking"]):
            yield resolve_uri(tracking.get("uri"), Path.cwd())
