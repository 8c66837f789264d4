"""Closing reports: what a trained judge does on held-out data, as JSON and a picture. A new kind is a new file here."""

from __future__ import annotations

from posttrain.runs.reports.registry import PICTURE, TABLE, report, write

__all__ = ["PICTURE", "TABLE", "report", "write"]
