"""What a sweep says when its runs have ended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from posttrain.runs.slurm.follow import word


def table_of(runs: Sequence[tuple[str, Path, int]], folder: Path) -> Table:
    """Of each run (name, folder, exit code): what it was, how it ended, its validation loss. folder: of the sweep."""
    table = Table("run", "status", "steps", "val/loss", title=f"{len(runs)} runs in {folder}", title_justify="left", box=None)
    for name, own, code in runs:
        result = _result(own)
        loss = result.get("metrics", {}).get("val/loss")
        status = result.get("status", "finished") if code == 0 else word(code)
        table.add_row(name, status, str(result.get("steps", "")), "" if loss is None else f"{loss:.4f}")
    return table


def _result(folder: Path) -> dict[str, Any]:
    file = folder / "result.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
