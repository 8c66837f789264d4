"""Trackers: where the records of a run are copied to, besides its own folder."""

from posttrain.runs.tracking.base import DatasetRecord, RunInfo, Tracker, git_state

__all__ = ["DatasetRecord", "RunInfo", "Tracker", "git_state"]
