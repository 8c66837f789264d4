"""The sheet that an annotator fills in: its columns, and what of them must not change."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.evaluation.human.cells import guarded, same_lines, to_csv

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TIE = "tie"
LEAST, MOST = 1, 5  # a rating


@dataclass(frozen=True)
class Shown:
    """One row as an annotator sees it. id: of the item. answers: in the order shown; the key alone knows whose they are."""

    id: str
    prompt: str
    reference: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Sheet:
    """name: which key and which rater it belongs to."""

    name: str
    rows: tuple[Shown, ...]

    @property
    def answers(self) -> int:
        """Answers in a row."""
        return len(self.rows[0].answers)


def header(answers: int) -> list[str]:
    """The columns of a sheet that shows so many answers."""
    letters = LETTERS[:answers]
    shown = [f"answer_{letter}" for letter in letters]
    return ["id", "prompt", "reference", *shown, *(f"rating_{letter}" for letter in letters), "preferred", "notes", "row", "sheet"]


def fixed(row: Shown) -> tuple[str, ...]:
    """What of a row is given and must come back as it was."""
    return (row.id, row.prompt, row.reference, *row.answers)


def digest(row: Shown) -> str:
    """Tells whether a row was changed. Begins with a letter, so that no spreadsheet takes it for a number."""
    return "x" + hashlib.blake2b("\0".join(map(_counted, fixed(row))).encode("utf-8"), digest_size=8).hexdigest()


def _counted(text: str) -> str:
    text = same_lines(text)
    return f"{len(text)}:{text}"


def cells(row: Shown, sheet: str) -> list[str]:
    """A row that is not filled in."""
    return [row.id, *map(guarded, fixed(row)[1:]), *([""] * (len(row.answers) + 2)), digest(row), sheet]


def as_csv(sheet: Sheet) -> bytes:
    """The sheet as a file for a spreadsheet."""
    return to_csv(header(sheet.answers), [cells(row, sheet.name) for row in sheet.rows])


def judged(cells_of_row: Sequence[str], answers: int) -> tuple[list[str], str, str]:
    """The ratings, the preference and the notes in the cells of a row."""
    start = 3 + answers
    return list(cells_of_row[start : start + answers]), cells_of_row[start + answers], cells_of_row[start + answers + 1]
