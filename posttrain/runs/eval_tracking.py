"""Adds the results of a later evaluation to the MLflow record of the run that made the artifact."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from posttrain.runs.tracking.journal import Journal
from posttrain.runs.tracking.mlflow import CLIENT_SETTINGS
from posttrain.runs.tracking.naming import chunks, legal
from posttrain.runs.tracking.uris import redacted

log = logging.getLogger(__name__)


def log_to_run(run_dir: Path, suite: str, metrics: Mapping[str, float], files: Sequence[Path]) -> str:
    """Log ``eval/<suite>/*`` and the result files; says to which run, or nothing where there is no record to add to.

    A store that is away costs a warning: the files hold it all.
    """
    state = Journal(run_dir).state()
    if state is None or state.run_id is None:
        return ""
    os.environ.update(CLIENT_SETTINGS | os.environ)  # read by MLflow when it is imported and with every request
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    now, step = int(time.time() * 1000), _last_step(run_dir)
    values = [Metric(legal(f"eval/{suite}/{name}"), value, now, step) for name, value in metrics.items() if math.isfinite(value)]
    try:
        client = MlflowClient(state.uri)
        for part in chunks(values, 500):
            client.log_batch(state.run_id, metrics=part)
        for file in files:
            client.log_artifact(state.run_id, str(file), "eval")
    except (MlflowException, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        log.warning("tracking: %s was not reached (%s); the results are in %s", redacted(state.uri), reason[:300], files[0].parent)
        return ""
    return f"added to run {state.run_id} of {redacted(state.uri)}"


def _last_step(run_dir: Path) -> int:
    """Optimizer steps behind the artifact; 0 if the run left no result."""
    path = run_dir / "result.json"
    return int(json.loads(path.read_text(encoding="utf-8")).get("steps", 0)) if path.is_file() else 0
