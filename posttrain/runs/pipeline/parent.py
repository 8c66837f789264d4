"""The tracking run that a pipeline's stages hang under: a sweep's or a study's where there is one, else its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.runs.records import Status
from posttrain.runs.tracking.sweep import finish_parent, is_mlflow, start_pipeline


class Parent:
    """The run above the stages, in MLflow. own: it is the pipeline's, which opens and closes it."""

    def __init__(self, config: Mapping[str, Any], folder: Path) -> None:
        self.config, self.folder = config, folder
        given = config["tracking"].get("parent_run_id")
        self.own = given is None and is_mlflow(config["tracking"])
        stages = [node["name"] for node in config["stages"]]
        self.run_id: str | None = start_pipeline(config, folder, stages) if self.own else given

    def tracking(self, config: Mapping[str, Any], stage: str) -> dict[str, Any]:
        """A stage's `tracking` node: under the parent, with its name as a tag."""
        node = dict(config["tracking"])
        if not is_mlflow(node):
            return node
        tags = {**(self.config["tracking"].get("tags") or {}), "stage": stage}
        own = self.config["tracking"].get("run_name") or self.folder.name  # in a study the arm's name is part of it
        return {**node, "parent_run_id": self.run_id, "tags": tags, "run_name": f"{own}/{stage}"}

    def finish(self, status: Status) -> None:
        """Close it, if it is the pipeline's own."""
        if self.own and self.run_id is not None:
            finish_parent(self.config, self.run_id, status)
