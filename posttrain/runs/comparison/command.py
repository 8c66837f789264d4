"""The command: reads, compares, shows and writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

from rich.markup import escape
from rich.table import Table

from posttrain.errors import ConfigError, Problem
from posttrain.runs import report as terminal
from posttrain.runs import suggest
from posttrain.runs.comparison.analyse import analyse
from posttrain.runs.comparison.arms import Arm, arms_of
from posttrain.runs.comparison.costs import cost_of, curves_of
from posttrain.runs.comparison.metric import lower_is_better, measured
from posttrain.runs.comparison.page import page
from posttrain.runs.comparison.read import read_runs
from posttrain.runs.comparison.report import COSTS, QUALITY, Report, as_json, cost_rows, notes_of, quality_rows
from posttrain.runs.comparison.verdict import verdicts
from posttrain.runs.files import prepare_folder, write_atomic

Direction = Literal["auto", "higher", "lower"]


def compare(
    *,
    runs: list[str],
    metric: str | None = None,
    smallest: float = 0.01,
    baseline: str | None = None,
    better: Direction = "auto",
    to: str | None = None,
) -> Report:
    """Compare finished runs; writes compare.json and compare.html.

    Args:
        runs: folders of finished runs; a folder of runs (a sweep's) stands for all in it.
        metric: what decides, as result.json names it, or eval/SUITE/NAME; null = the first of eval/exact_match, val/reward, val/loss
            and the others that all runs have.
        smallest: the smallest difference of the metric that matters.
        baseline: the arm that others are compared with, by a run of it or by its name; null = the best.
        better: higher, lower, or auto, by the metric's name (losses, perplexities and errors: lower).
        to: folder for the report; null = a new one under outputs/compare.

    Raises:
        ConfigError: with everything that is wrong.
    """
    _check(smallest)
    arms = arms_of(read_runs(runs))
    place = None if baseline is None else _place_of(baseline, arms)
    data = measured(arms, metric)
    lower = lower_is_better(data.metric) if better == "auto" else better == "lower"
    found = analyse([arm.name for arm in arms], [arm.seeds for arm in arms], data, lower=lower, smallest=smallest, baseline=place)
    made = Report(found, arms, [cost_of(arm) for arm in arms], curves_of(arms, data.metric), verdicts(found), notes_of(found, arms))
    folder = (
        Path(to).expanduser().absolute() if to is not None else Path("outputs/compare", f"{datetime.now():%Y-%m-%d/%H-%M-%S}").absolute()
    )
    write(made, folder)
    show(made, folder)
    return made


def _check(smallest: float) -> None:
    if not smallest > 0:
        raise ConfigError(
            Problem(f"smallest={smallest}", "expected a number above 0", "the smallest difference of the metric that matters")
        )


def _place_of(baseline: str, arms: Sequence[Arm]) -> int:
    folder = Path(baseline).expanduser().absolute()
    for place, arm in enumerate(arms):
        if baseline == arm.name or any(run.folder == folder for run in arm.runs):
            return place
    names = [arm.name for arm in arms]
    raise ConfigError(Problem(f"baseline={baseline}", "is neither an arm nor one of the runs", suggest.hint(baseline, names)))


def write(made: Report, folder: Path) -> None:
    """compare.json and compare.html in `folder`."""
    prepare_folder(folder, key="to")
    write_atomic(folder / "compare.json", json.dumps(as_json(made), indent=2, allow_nan=False, ensure_ascii=False, default=str) + "\n")
    write_atomic(folder / "compare.html", page(made))


def show(made: Report, folder: Path) -> None:
    """Tables, the verdict and where the files are, on stdout."""
    console = terminal.console()
    for title, head, rows in ((made.analysis.metric, QUALITY, quality_rows(made.analysis)), ("cost", COSTS, cost_rows(made))):
        table = Table(*head, title=title, title_justify="left", box=None)
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
        console.print()
    for line in made.verdicts:
        console.print(line, style="bold", markup=False)
    for note in made.notes:
        console.print(note, style="dim", markup=False)
    console.print(f"\n{folder / 'compare.html'}\n{folder / 'compare.json'}", markup=False)
