"""Sheets that come back: everything that is wrong with them, or the judgements in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from posttrain.errors import DataError, Problem
from posttrain.evaluation.human.blind import Key, KeyRow
from posttrain.evaluation.human.cells import BadFile, bare, from_csv
from posttrain.evaluation.human.sheet import LEAST, LETTERS, MOST, TIE, Shown, digest, header, judged

REPAIR = "take the sheet as it was made, and fill in ratings, preference and notes alone"
RATING = re.compile(r"(\d+)(?:[.,]0*)?")


@dataclass(frozen=True)
class Judgement:
    """What one rater says of one item. ratings: by arm. preferred: an arm, None for a tie. order: arms as they were shown.

    runs: by arm, which run of it wrote the answer; empty where that is not known.
    """

    item: str
    rater: str
    stratum: str
    ratings: tuple[int, ...]
    preferred: int | None
    order: tuple[int, ...]
    notes: str
    runs: tuple[str, ...] = ()


def judgements(sheets: Sequence[tuple[str, bytes]], key: Key) -> list[Judgement]:
    """The judgements in some sheets, each (file, content). Raises DataError with everything that is wrong in any of them."""
    problems: list[Problem] = []
    found: list[Judgement] = []
    seen: dict[str, str] = {}
    for file, content in sheets:
        read = _Reader(file, key, problems)
        rater, rows = read.sheet(content)
        if rater in seen:
            problems.append(Problem(file, f"is a second sheet of rater {rater}; the first is {seen[rater]}", "give one of them"))
        if rater:
            seen.setdefault(rater, file)
        found += rows
    if problems:
        raise DataError(problems)
    return found


@dataclass(frozen=True)
class _Reader:
    """Reads one file; adds what is wrong to `problems`."""

    file: str
    key: Key
    problems: list[Problem]

    def wrong(self, row: int | None, message: str, hint: str = "") -> None:
        self.problems.append(Problem(self.file if row is None else f"{self.file}:{row}", message, hint))

    def sheet(self, content: bytes) -> tuple[str, list[Judgement]]:
        """Its rater, empty where it belongs to another key, and its judgements."""
        try:
            records = from_csv(content)
        except BadFile as error:
            self.wrong(None, str(error), "save it as 'CSV UTF-8'")
            return "", []
        names = header(len(self.key.arms))
        if not records or [bare(name).strip() for name in records[0]] != names:
            self.wrong(1, f"expected the columns {', '.join(names)}", REPAIR)
            return "", []
        rows = [(number, record) for number, record in enumerate(records[1:], 2) if self._is_whole(number, record, len(names))]
        rater = self._rater(rows)
        return (rater, self._rows(rater, rows)) if rater else ("", [])

    def _is_whole(self, number: int, record: list[str], columns: int) -> bool:
        if len(record) != columns:
            self.wrong(number, f"has {len(record)} cells, expected {columns}", REPAIR)
        return len(record) == columns

    def _rater(self, rows: Sequence[tuple[int, list[str]]]) -> str:
        """Whose sheet it is, by what most rows say."""
        if not rows:
            self.wrong(None, "has no rows", REPAIR)
            return ""
        named = {self.key.name_of(rater): rater for rater in self.key.raters}
        name, _ = Counter(bare(record[-1]).strip() for _, record in rows).most_common(1)[0]
        if name not in named:
            self.wrong(None, f"belongs to another key: it says {name}, the key is {self.key.digest}", "give the key.json it was made with")
            return ""
        for number, record in rows:
            if bare(record[-1]).strip() != name:
                self.wrong(number, f"comes from another sheet: it says {bare(record[-1])}, the others {name}", REPAIR)
        return named[name]

    def _rows(self, rater: str, rows: Sequence[tuple[int, list[str]]]) -> list[Judgement]:
        wanted = {row.id: row for row in self.key.raters[rater]}
        first: dict[str, int] = {}
        found: list[Judgement] = []
        for number, record in rows:
            name = bare(record[0]).strip()
            if name not in wanted:
                self.wrong(number, f"there is no item {name!r} in this sheet", REPAIR)
            elif name in first:
                self.wrong(number, f"{name} is there twice; the first is in row {first[name]}", "leave one of them")
            else:
                first[name] = number
                found += self._judgement(rater, number, record, wanted[name])
        for name in sorted(wanted.keys() - first.keys()):
            self.wrong(None, f"row {name} is missing", "a sheet must come back whole")
        return found

    def _judgement(self, rater: str, number: int, record: list[str], row: KeyRow) -> Iterator[Judgement]:
        arms = len(row.order)
        shown = Shown(bare(record[0]).strip(), bare(record[1]), bare(record[2]), tuple(map(bare, record[3 : 3 + arms])))
        if digest(shown) != row.row:
            self.wrong(number, f"{row.id}: its prompt, reference or answers were changed", REPAIR)
        elif bare(record[-2]).strip() != row.row:
            self.wrong(number, f"{row.id}: the column `row` was changed", REPAIR)
        ratings, preferred, notes = judged([bare(cell) for cell in record], arms)
        rated = [self._rating(number, row.id, letter, text) for letter, text in zip(LETTERS, ratings, strict=False)]
        place = self._preferred(number, row.id, preferred.strip(), arms)
        if place is None or None in rated:
            return
        by_arm = tuple(int(rated[row.order.index(arm)] or 0) for arm in range(arms))
        yield Judgement(row.id, rater, row.stratum, by_arm, None if place < 0 else row.order[place], row.order, notes, row.runs)

    def _rating(self, number: int, name: str, letter: str, text: str) -> int | None:
        match = RATING.fullmatch(text.strip())
        if match and LEAST <= int(match[1]) <= MOST:
            return int(match[1])
        what = f"rating_{letter} is {text.strip()!r}" if text.strip() else f"rating_{letter} is empty"
        self.wrong(number, f"{name}: {what}, expected a whole number from {LEAST} to {MOST}")
        return None

    def _preferred(self, number: int, name: str, text: str, arms: int) -> int | None:
        """The place of the preferred answer; -1 for a tie."""
        if text.lower() == TIE:
            return -1
        if len(text) == 1 and text.upper() in LETTERS[:arms]:
            return LETTERS.index(text.upper())
        what = f"preferred is {text!r}" if text else "preferred is empty"
        self.wrong(number, f"{name}: {what}, expected {', '.join(LETTERS[:arms])} or {TIE}")
        return None
