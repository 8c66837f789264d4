"""The parent run of a sweep or a pipeline, created once in the submitting process."""

from __future__ import annotations

import json
import logging
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from posttrain.runs.files import write_atomic
from posttrain.runs.forking.client import end
from posttrain.runs.records import Status
from posttrain.runs.tracking.mlflow import start_client
from posttrain.runs.tracking.naming import flatten
from posttrain.runs.tracking.uris import resolve_uri

ANSWER_SECONDS = 300.0  # of a busy machine: clients give up on a silent store much sooner (CLIENT_SETTINGS)
FILE = ".parent"  # in the folder of a sweep or a pipeline: the key by which the store knows its run
log = logging.getLogger(__name__)


def start_parent(config: Mapping[str, Any], overrides: Sequence[str], folder: Path) -> str | None:
    """Open the MLflow run that a sweep's jobs hang under, the same when it is started again; its id goes to each job as
    `tracking.parent_run_id`.

    config: as composed without the swept keys. overrides: the sweep's command line. folder: the sweep's.
    None if the config does not track with MLflow, and, with a warning, if the store does not answer: the jobs then stand side by side.
    """
    tracking = config["tracking"]
    if not is_mlflow(tracking):
        return None
    line = " ".join(overrides)
    study = config.get("study")
    request = {
        "uri": resolve_uri(tracking.get("uri"), Path.cwd()),
        "experiment": tracking["experiment"],
        "key": _key_in(folder, anew=config.get("resume") == "never"),
        "name": line[:200] or "sweep",
        "tags": {"posttrain.sweep": line[:5000]} | ({"posttrain.study": str(study)} if study else {}),
        "params": flatten({"sweep": list(overrides)}),
    }
    return ask_store("start", request)


def _key_in(folder: Path, *, anew: bool = False) -> str:
    """The key of a folder's run. It is written before the store is asked, so that a kill in between leaves no second run."""
    file = folder / FILE
    if file.is_file() and not anew:
        return file.read_text(encoding="utf-8").strip()
    folder.mkdir(parents=True, exist_ok=True)
    key = uuid.uuid4().hex
    write_atomic(file, f"{key}\n")
    return key


def start_pipeline(config: Mapping[str, Any], folder: Path, stages: Sequence[str]) -> str | None:
    """Open the MLflow run that a pipeline's stages hang under. folder: its own. None, with a warning, if the store does not answer."""
    tracking, method = config["tracking"], config["method"]["name"]
    tags = {"posttrain.method": method, **{f"posttrain.{key}": str(value) for key, value in (tracking.get("tags") or {}).items()}}
    request = {
        "uri": resolve_uri(tracking.get("uri"), Path.cwd()),
        "experiment": tracking["experiment"],
        "key": _key_in(folder),
        "name": folder.name,
        "tags": tags,
        "params": flatten({"stages": list(stages), "seed": config["seed"], "model": {"name": config["model"]["name"]}}),
    }
    return ask_store("start", request)


def finish_parent(config: Mapping[str, Any], run_id: str, status: Status) -> None:
    """Close a parent run."""
    ask_store("finish", {"uri": resolve_uri(config["tracking"].get("uri"), Path.cwd()), "run_id": run_id, "status": status})


@contextmanager
def parent_open(config: Mapping[str, Any], run_id: str | None) -> Iterator[Callable[[Status], None]]:
    """Closes a parent run, where there is one, however what is inside ends; what is yielded is told how it ended.

    A user who stops waiting for SLURM leaves it open: jobs go on.
    """
    from posttrain.runs.slurm.follow import LeftRunning

    ends: list[Status | None] = ["failed"]
    try:
        yield ends.append
    except LeftRunning:
        ends.append(None)
        raise
    except KeyboardInterrupt:
        ends.append("stopped")
        raise
    finally:
        if run_id is not None and (status := ends[-1]) is not None:
            finish_parent(config, run_id, status)


def is_mlflow(tracking: Mapping[str, Any]) -> bool:
    """Whether a `tracking` node names the MLflow tracker."""
    return str(tracking.get("_target_")).endswith(".MLflowTracker")


def ask_store(action: str, request: Mapping[str, Any], *, otherwise: str = "the runs go on without their parent") -> str | None:
    """Run `tracking.parent` in a process of its own, with our client settings. None, with a warning, if the store does not answer."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        client = start_client("parent", action, json.dumps(request), output=(out.fileno(), err.fileno()))
        try:
            code = client.wait(ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("tracking: the store did not answer within %.0f s: %s", ANSWER_SECONDS, otherwise)
            return None
        finally:
            end(client)
        said, refused = _lines(out), _lines(err)
    if code != 0:
        log.warning("tracking: %s: %s", (refused or ["no answer"])[-1], otherwise)
        return None
    return said[-1]


def _lines(file: IO[bytes]) -> list[str]:
    file.seek(0)
    return file.read().decode(errors="replace").strip().splitlines()
