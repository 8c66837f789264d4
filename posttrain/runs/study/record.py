"""study.json: what a study's folder holds, for whoever compares its arms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.runs.budget.amount import budget_of
from posttrain.runs.files import write_atomic
from posttrain.runs.study.spec import SMALLEST, Study

FILE = "study.json"


def write_study(
    folder: Path,
    arms: Mapping[str, Sequence[Path]],
    configs: Sequence[Mapping[str, Any]],
    parent: str | None,
    study: Study | None = None,
) -> None:
    """Write the record. arms: the runs' folders by arm. configs: of all runs. study: None for a plain sweep.

    Its budget is the one that all runs have; null where they have none, or each its own.
    """
    budgets = {budget_of(config) for config in configs}
    budget = budgets.pop() if len(budgets) == 1 else None
    record = {
        "name": folder.name if study is None else study.name,
        "metric": None if study is None else study.metric,
        "better": "auto" if study is None else study.better,
        "smallest": SMALLEST if study is None else study.smallest,
        "budget": None if budget is None else {"unit": budget.unit, "amount": budget.amount},
        "arms": [{"name": name, "runs": [str(run.relative_to(folder)) for run in runs]} for name, runs in arms.items()],
        "parent": parent,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def known_parent(folder: Path) -> str | None:
    """The tracking run of a study that was started before."""
    file = folder / FILE
    if not file.is_file():
        return None
    parent = json.loads(file.read_text(encoding="utf-8")).get("parent")
    return parent if isinstance(parent, str) else None
