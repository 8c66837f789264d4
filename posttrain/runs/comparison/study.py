"""A study's own record, study.json: its arms, what decides, and where the runs lie."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from posttrain.errors import ConfigError, Problem

FILE, FOLDER = "study.json", "compare"
Direction = Literal["auto", "higher", "lower"]


@dataclass(frozen=True)
class Study:
    """folder: where study.json lies. metric: what decides, None = the first alike in all runs. smallest: difference that matters.

    budget: {"unit", "amount"}, None where arms may cost what they like. arms: folders of the runs by the arm's name. parent: the MLflow
    run that the runs are children of.
    """

    folder: Path
    name: str
    metric: str | None
    better: Direction
    smallest: float
    budget: Mapping[str, Any] | None
    arms: Mapping[str, tuple[Path, ...]]
    parent: str | None


def read_study(folder: Path) -> Study:
    """The study in `folder`. Raises ConfigError with all that is wrong with its record."""
    where = f"study={folder}"
    file = folder / FILE
    if not file.is_file():
        what = "no such folder" if not folder.exists() else "is a file" if folder.is_file() else f"there is no {FILE} in it"
        raise ConfigError(Problem(where, what, "give the folder of a study; a sweep without one is compared with runs=DIR"))
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(Problem(where, f"{FILE} is broken: {error}")) from error
    if problems := list(_wrong(record, where)):
        raise ConfigError(problems)
    arms = {arm["name"]: tuple((folder / path).absolute() for path in arm["runs"]) for arm in record["arms"]}
    return Study(
        folder, record["name"], record["metric"], record["better"], float(record["smallest"]), record.get("budget"), arms,
        record.get("parent"),
    )  # fmt: skip


def _wrong(record: Any, where: str) -> Iterator[Problem]:
    """What the record lacks, or holds of another kind."""
    if not isinstance(record, dict):
        yield Problem(where, f"{FILE} must hold an object")
        return
    expected: Mapping[str, tuple[bool, str]] = {
        "name": (isinstance(record.get("name"), str), "a text"),
        "metric": ("metric" in record and isinstance(record["metric"], str | None), "a metric's name or null"),
        "better": (record.get("better") in get_args(Direction), "auto, higher or lower"),
        "smallest": (_is_positive(record.get("smallest")), "a number above 0"),
        "budget": (record.get("budget") is None or _is_budget(record["budget"]), '{"unit", "amount"} or null'),
        "parent": (isinstance(record.get("parent"), str | None), "an MLflow run id or null"),
        "arms": (_are_arms(record.get("arms")), 'a list of {"name", "runs": [folders]}, each with at least one run'),
    }
    for key, (fits, words) in expected.items():
        if not fits:
            yield Problem(where, f"{FILE}: {key} is {json.dumps(record.get(key))[:80]}, expected {words}")
    if expected["arms"][0]:
        yield from _twice(record["arms"], where)


def _twice(arms: list[dict[str, Any]], where: str) -> Iterator[Problem]:
    for name, count in Counter(arm["name"] for arm in arms).items():
        if count > 1:
            yield Problem(where, f"{FILE}: {count} arms are called {name}")
    for path, count in Counter(path for arm in arms for path in arm["runs"]).items():
        if count > 1:
            yield Problem(where, f"{FILE}: the run {path} is there {count} times")


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_budget(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("unit"), str) and _is_positive(value.get("amount"))


def _are_arms(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(arm, dict)
            and isinstance(arm.get("name"), str)
            and isinstance(arm.get("runs"), list)
            and bool(arm["runs"])
            and all(isinstance(path, str) for path in arm["runs"])
            for arm in value
        )
    )
