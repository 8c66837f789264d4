"""HumanEval in the sandbox: every canonical solution passes, mutated ones do not."""

from __future__ import annotations

import gzip
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from posttrain.rewards.sandbox import Limits, Outcome, run_check

ROOT = Path(__file__).resolve().parents[2]
HUMANEVAL = ROOT.parent / "shared" / "data" / "humaneval.jsonl.gz"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the guards are those of Linux")


@pytest.fixture(scope="module")
def tasks() -> list[dict[str, str]]:
    if not HUMANEVAL.exists():
        pytest.skip(f"{HUMANEVAL} is not there")
    with gzip.open(HUMANEVAL, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def judged(tasks: list[dict[str, str]], solution) -> dict[str, Outcome]:
    def one(task: dict[str, str]) -> Outcome:
        return run_check(task["prompt"] + solution(task), task["test"], task["entry_point"], Limits(wall=30), setup=task["prompt"])

    with ThreadPoolExecutor(2) as pool:
        return dict(zip([task["task_id"] for task in tasks], pool.map(one, tasks), strict=True))


def test_humaneval_solutions_pass(tasks: list[dict[str, str]]) -> None:
    outcomes = judged(tasks, lambda task: task["canonical_solution"])
    assert len(outcomes) == 164
    assert {name: outcome for name, outcome in outcomes.items() if outcome.status != "passed"} == {}
    assert sum(outcome.total for outcome in outcomes.values()) > 1000


MUTANTS = {
    "returns nothing": lambda task: "    return None\n",
    "returns the first argument": lambda task: (
        f"    return None\n_f = {task['entry_point']}\ndef {task['entry_point']}(*a): return a[0] if a else None\n"
    ),
    "returns 1": lambda task: f"    return None\ndef {task['entry_point']}(*a): return 1\n",
    "raises": lambda task: "    raise AssertionError\n",
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutated_humaneval_solutions_fail(tasks: list[dict[str, str]], mutant: str) -> None:
    outcomes = judged(tasks[::2] if mutant != "returns nothing" else tasks, MUTANTS[mutant])
    assert {name for name, outcome in outcomes.items() if outcome.status == "passed"} == set()
