"""`posttrain human-eval score`: what filled sheets say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from posttrain.errors import ConfigError, Problem
from posttrain.evaluation.human.blind import Key, from_json
from posttrain.evaluation.human.returned import judgements
from posttrain.evaluation.human.summary import Summary, summarise
from posttrain.runs import report as terminal
from posttrain.runs.files import prepare_folder, write_atomic
from posttrain.runs.human_eval.report import as_json, notes, page, tables, verdicts


def score(*, sheets: list[str], key: str, to: str | None = None) -> Summary:
    """Read filled sheets; write TO/human_eval.json and TO/human_eval.html.

    Args:
        sheets: CSV files, as the form or a spreadsheet saved them.
        key: the key.json that was made with them.
        to: folder for the report; null = the key's.

    Raises:
        UserError: a sheet or the key was changed, or is incomplete; with everything that is wrong.
    """
    found = _key(Path(key).expanduser())
    contents = _contents(sheets)
    judged = judgements(contents, found)
    summary = summarise(judged, found.arms, found.by)
    folder = Path(to).expanduser().absolute() if to is not None else Path(key).expanduser().absolute().parent
    prepare_folder(folder, key="to")
    remarks = [(one.rater, one.item, one.notes) for one in judged if one.notes.strip()]
    said = {**as_json(summary), "sheets": [file for file, _ in contents], "key": found.digest, "made": dict(found.about)}
    write_atomic(folder / "human_eval.json", json.dumps(said, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
    write_atomic(folder / "human_eval.html", page(summary, remarks))
    _show(summary, found, folder)
    return summary


def _key(file: Path) -> Key:
    try:
        return from_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            Problem(f"key={file}", f"cannot be read: {error.strerror}", "the key.json beside the folder of sheets")
        ) from error
    except ValueError as error:
        raise ConfigError(Problem(f"key={file}", str(error), "the key.json beside the folder of sheets, as it was made")) from error


def _contents(sheets: Sequence[str]) -> list[tuple[str, bytes]]:
    found, problems = [], []
    for text in sheets:
        try:
            found.append((text, Path(text).expanduser().read_bytes()))
        except OSError as error:
            problems.append(Problem(f"sheets: {text}", f"cannot be read: {error.strerror}"))
    if not sheets:
        problems.append(Problem("sheets", "names no sheet", "sheets=[A.csv,B.csv]"))
    if problems:
        raise ConfigError(problems)
    return found


def _show(summary: Summary, key: Key, folder: Path) -> None:
    console = terminal.console()
    for title, head, rows in tables(summary):
        shown = Table(*head, title=title, title_justify="left", box=None)
        for row in rows:
            shown.add_row(*map(escape, row))
        console.print(shown)
        console.print()
    for line in verdicts(summary):
        console.print(line, style="bold", markup=False)
    if left := sorted(key.raters.keys() - set(summary.raters)):
        console.print(f"Sheets that are not here: {', '.join(left)}.", markup=False)
    for note in notes(summary):
        console.print(note, style="dim", markup=False)
    console.print(f"\n{folder / 'human_eval.html'}\n{folder / 'human_eval.json'}", markup=False)
