"""What runs on a CPU import, and the processes that record them. No tensor is computed here, and no thread started: forks have none."""

from __future__ import annotations

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a thread of its own

import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

import posttrain.runs.job
import posttrain.runs.session
import posttrain.runs.tracking.sender
import posttrain.runs.worker  # noqa: F401
from posttrain.runs.pipeline.identity import code_digest

code_digest()  # of the sources that are imported here, whatever they are when a forked process asks
