"""What a closing report is, and the registry; a method names its own in `Method.report`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from posttrain.discovery import import_modules
from posttrain.runs.files import write_atomic
from posttrain.runs.plots import write_png
from posttrain.runs.records import encode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE, PICTURE = "report.json", "report.png"
Columns = Mapping[str, np.ndarray]
Report = Callable[[Columns], tuple[dict[str, Any], "Figure"]]
_REPORTS: dict[str, Report] = {}


def report(name: str) -> Callable[[Report], Report]:
    """Register the decorated function as the report `name`: columns of `Method.outcomes` -> what to write, and its picture."""

    def add(function: Report) -> Report:
        _REPORTS[name] = function
        return function

    return add


@cache
def reports() -> Mapping[str, Report]:
    """Every report by name; imports the modules of this folder on first use."""
    import_modules("posttrain.runs.reports")
    return _REPORTS


def write(name: str, outcomes: Columns, folder: Path) -> tuple[Path, Path]:
    """Write the report `name` of held-out outcomes to `folder`; returns the paths of its table and its picture."""
    table, figure = reports()[name](outcomes)
    write_atomic(folder / TABLE, json.dumps(_plain(table), indent=2, allow_nan=False) + "\n")
    write_png(figure, folder / PICTURE)
    return folder / TABLE, folder / PICTURE


def _plain(value: Any) -> Any:
    """Numbers that JSON has not (NaN) as metrics.jsonl writes them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return encode(value) if isinstance(value, float) else value
