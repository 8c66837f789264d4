"""The command: reads, compares, shows and writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from posttrain.errors import ConfigError, Problem
from posttrain.runs import report as terminal
from posttrain.runs import suggest
from posttrain.runs.comparison.analyse import analyse
from posttrain.runs.comparison.arms import Arm, arms_of, named_arms
from posttrain.runs.comparison.budgets import budget_note, budgets_of, unequal
from posttrain.runs.comparison.costs import cost_of, curves_of
from posttrain.runs.comparison.direction import lower_is_better
from posttrain.runs.comparison.drift import drifts_of
from posttrain.runs.comparison.forgetting import changes_of
from posttrain.runs.comparison.ink import svg
from posttrain.runs.comparison.metric import measured
from posttrain.runs.comparison.page import page
from posttrain.runs.comparison.pictures import pictures
from posttrain.runs.comparison.publish import publish
from posttrain.runs.comparison.quantity import cautions
from posttrain.runs.comparison.read import read_arms, read_runs, status_of
from posttrain.runs.comparison.report import (
    COSTS,
    QUALITY,
    TIMES,
    Report,
    as_json,
    cost_rows,
    notes_of,
    quality_rows,
    time_rows,
)
from posttrain.runs.comparison.study import FOLDER, Direction, Study, read_study
from posttrain.runs.comparison.verdict import verdicts
from posttrain.runs.files import prepare_folder, write_atomic

SMALLEST = 0.01


def compare(
    *,
    runs: list[str] | None = None,
    study: str | None = None,
    metric: str | None = None,
    smallest: float | None = None,
    baseline: str | None = None,
    better: Direction | None = None,
    to: str | None = None,
) -> Report:
    """Compare finished runs, or the arms of a study; writes compare.json, compare.html and the plots.

    Args:
        runs: folders of finished runs; a folder of runs (a sweep's) stands for all in it.
        study: the folder of a study, instead of runs; its study.json says what decides, unless the arguments below do.
        metric: what decides, as result.json names it, or eval/SUITE/NAME; null = as the study says, else the first of eval/exact_match,
            val/reward, val/loss, val/rewards/accuracy and others that all runs have and that is the same quantity in all.
        smallest: the smallest difference of the metric that matters; null = as the study says, else 0.01.
        baseline: the arm that others are compared with, by a run of it or by its name; null = the best.
        better: higher, lower, or auto, by the metric's name (losses, perplexities and errors: lower); null = as the study says, else auto.
        to: folder for the report; null = compare/ in the study's folder, else a new one under outputs/compare.

    Raises:
        ConfigError: with everything that is wrong.
    """
    _check(runs, study, smallest)
    if study is not None:
        return _of_study(read_study(Path(study).expanduser().absolute()), metric, smallest, baseline, better, to)
    made = report_of(
        arms_of(read_runs(runs or [])), metric=metric, smallest=smallest or SMALLEST, baseline=baseline, better=better or "auto"
    )
    new = f"outputs/compare/{datetime.now():%Y-%m-%d/%H-%M-%S}"
    _deliver(made, Path(new if to is None else to).expanduser().absolute())
    return made


def report_on_study(folder: Path) -> Report:
    """Compare a study's arms as its study.json asks; writes into FOLDER/compare and to its MLflow parent, and shows tables and verdict.

    Raises ConfigError with everything that is wrong, as where a run is not finished.
    """
    return compare(study=str(folder))


def report_on_finished(folder: Path) -> Report:
    """The same of the arms alone whose runs have all finished; a note names the others. An arm without the seeds that failed would look
    better than it is.

    Raises ConfigError where fewer than two arms are left, besides what `report_on_study` raises for.
    """
    study = read_study(folder)
    ended = {name: [(run.name, status_of(run)) for run in runs] for name, runs in study.arms.items()}
    lost = {name: [f"{run} {status}" for run, status in runs if status != "finished"] for name, runs in ended.items()}
    kept = {name: runs for name, runs in study.arms.items() if not lost[name]}
    note = "Left out, since runs did not finish: " + "; ".join(f"{name} ({', '.join(some)})" for name, some in lost.items() if some) + "."
    if len(kept) < 2:
        advice = "the same command runs what is missing"
        raise ConfigError(Problem(f"study={folder}", f"{len(kept)} of {len(lost)} arms can be compared. {note}", advice))
    return _of_study(replace(study, arms=kept), None, None, None, None, None, notes=[note])


def _of_study(
    study: Study,
    metric: str | None,
    smallest: float | None,
    baseline: str | None,
    better: Direction | None,
    to: str | None,
    *,
    notes: Sequence[str] = (),
) -> Report:
    arms = named_arms(read_arms(study.arms))
    made = report_of(
        arms, metric=metric or study.metric, smallest=smallest or study.smallest, baseline=baseline, better=better or study.better,
        study=study,
    )  # fmt: skip
    made = replace(made, notes=[*notes, *made.notes, *budget_note(budgets_of(study, arms))])
    home = study.folder / FOLDER if to is None else Path(to).expanduser().absolute()
    files = _deliver(made, home)
    publish(study, arms, files)
    return made


def report_of(
    arms: Sequence[Arm], *, metric: str | None, smallest: float, baseline: str | None, better: Direction, study: Study | None = None
) -> Report:
    """Everything that is said of the arms. study: where they are one's. Raises ConfigError where they cannot be compared."""
    place = None if baseline is None else _place_of(baseline, arms)
    data = measured(arms, metric)
    lower = lower_is_better(data.metric) if better == "auto" else better == "lower"
    found = analyse([arm.name for arm in arms], [arm.seeds for arm in arms], data, lower=lower, smallest=smallest, baseline=place)
    runs = [run for arm in arms for run in arm.runs]
    first, *others = verdicts(found)
    whole = " ".join(filter(None, (first, unequal(budgets_of(study, arms)))))
    return Report(
        found, arms, [cost_of(arm) for arm in arms], curves_of(arms, data.metric), [whole, *others], cautions(runs, data.metric),
        notes_of(found, arms), drifts_of(arms, data.metric, lower=lower), changes_of(arms), study,
    )  # fmt: skip


def _check(runs: list[str] | None, study: str | None, smallest: float | None) -> None:
    problems = []
    if (runs is None) == (study is None):
        what = "is needed, or study" if runs is None else "and study exclude each other"
        problems.append(Problem("runs", what, "runs=[A,B,...], or study=DIR"))
    if smallest is not None and not smallest > 0:
        problems.append(Problem(f"smallest={smallest}", "expected a number above 0", "the smallest difference of the metric that matters"))
    if problems:
        raise ConfigError(problems)


def _place_of(baseline: str, arms: Sequence[Arm]) -> int:
    folder = Path(baseline).expanduser().absolute()
    for place, arm in enumerate(arms):
        if baseline == arm.name or any(run.folder == folder for run in arm.runs):
            return place
    names = [arm.name for arm in arms]
    raise ConfigError(Problem(f"baseline={baseline}", "is neither an arm nor one of the runs", suggest.hint(baseline, names)))


def _deliver(made: Report, folder: Path) -> list[Path]:
    files = write(made, folder)
    show(made, folder)
    return files


def write(made: Report, folder: Path) -> list[Path]:
    """compare.json, compare.html and the plots, NAME.svg, in `folder`."""
    prepare_folder(folder, key="to")
    drawn = {name: (svg(figure), words) for name, (figure, words) in pictures(made).items()}
    contents = {
        "compare.json": json.dumps(as_json(made), indent=2, allow_nan=False, ensure_ascii=False, default=str) + "\n",
        "compare.html": page(made, drawn),
        **{f"{name}.svg": picture for name, (picture, _) in drawn.items()},
    }
    for name, content in contents.items():
        write_atomic(folder / name, content)
    return [folder / name for name in contents]


def show(made: Report, folder: Path) -> None:
    """Tables, the verdict and where the files are, on stdout."""
    console = terminal.console()
    tables = (
        (made.analysis.metric, QUALITY, quality_rows(made.analysis)),
        ("cost", COSTS, cost_rows(made)),
        ("time and memory", TIMES, time_rows(made)),
    )
    for title, head, rows in tables:
        table = Table(*head, title=title, title_justify="left", box=None)
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
        console.print()
    for line in [*made.verdicts, *made.warnings]:
        console.print(line, style="bold", markup=False)
    for note in made.notes:
        console.print(note, style="dim", markup=False)
    console.print(f"\n{folder / 'compare.html'}\n{folder / 'compare.json'}", markup=False)
