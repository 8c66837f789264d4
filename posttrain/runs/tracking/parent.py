"""Create, add to, or close a sweep's parent run: ``python -m posttrain.runs.tracking.parent start|add|finish JSON``. All print its id."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.entities import Param, RunTag

from posttrain.runs.tracking.store import AWAY, RUN_KEY, STATUS, describe, ensure_experiment, find_run, open_client
from posttrain.runs.tracking.uris import artifact_location


def start(request: Mapping[str, Any]) -> str:
    """Create the run with its tags and parameters, or set the one with the request's key running again. Returns its id."""
    client = open_client(request["uri"])
    experiment = ensure_experiment(client, request["experiment"], artifact_location(request["uri"]))
    tags = request["tags"] | {RUN_KEY: request["key"]}
    run = find_run(client, experiment, request["key"]) or client.create_run(experiment, tags=tags, run_name=request["name"])
    client.update_run(run.info.run_id, status="RUNNING", name=request["name"])
    missing = {key: value for key, value in request["params"].items() if key not in run.data.params}  # they cannot be changed
    told = [RunTag(key, value) for key, value in tags.items()]
    client.log_batch(run.info.run_id, tags=told, params=[Param(key, value) for key, value in missing.items()])
    return run.info.run_id


def finish(request: Mapping[str, Any]) -> str:
    """Close the run. Returns its id."""
    open_client(request["uri"]).set_terminated(request["run_id"], STATUS[request["status"]])
    return request["run_id"]


def add(request: Mapping[str, Any]) -> str:
    """Put files into the folder `into` of the run's artifacts. Returns its id."""
    client = open_client(request["uri"])
    for file in request["files"]:
        client.log_artifact(request["run_id"], file, request["into"])
    return request["run_id"]


def main(arguments: Sequence[str]) -> int:
    """Exit 0, or 3 with one line on standard error if the store does not answer."""
    action, request = arguments
    content = json.loads(request)
    try:
        print({"start": start, "add": add, "finish": finish}[action](content))
    except AWAY as error:
        print(describe(error, content["uri"]), file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
