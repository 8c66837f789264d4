"""Blinded sheets: hostile texts come back equal, spreadsheets may save them, and nothing that was changed is read."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import DataError
from posttrain.evaluation.human.blind import Item, Key, balanced, blind, from_json, to_json
from posttrain.evaluation.human.cells import bare, from_csv, guarded, to_csv
from posttrain.evaluation.human.form import page
from posttrain.evaluation.human.returned import judgements
from posttrain.evaluation.human.sheet import Sheet, as_csv
from posttrain.evaluation.human.strata import sample, shares, strata_of

HOSTILE = (
    "=HYPERLINK(\"http://example.com\")", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "'quoted'", "007", "1/2", "true", "1e5", "", "a,b;c\td",
    '"""', "line\nline\r\nline\rline", "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "🙂 שלום \u202e", "nul \0 here",
    "long " * 20_000, "sep=;", "\ufeffbom", "&amp; &lt;",
)  # fmt: skip


def made(count: int = 6, raters: int = 1) -> tuple[Key, list[Sheet]]:
    items = [
        Item(f"prompt {k} {HOSTILE[-1 - k]}", "", (HOSTILE[2 * k], HOSTILE[2 * k + 1]), "all", ("one", "two")) for k in range(count)
    ]  # fmt: skip
    return blind(items, ["sft", "grpo"], by="nothing", about={"seed": 3}, raters=raters, seed=3)


def filled(sheet: Sheet, *, delimiter: str = ",", change: Callable[[list[list[str]]], object] | None = None) -> bytes:
    """As an annotator who rates 4 and 2 and prefers what stands first, saved by a spreadsheet."""
    records = from_csv(as_csv(sheet))
    for record in records[1:]:
        record[5:9] = ["4", "2", "a", "'=note"]
    if change is not None:
        change(records)
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, lineterminator="\r\n").writerows(records)
    return b"\xef\xbb\xbf" + out.getvalue().encode()


@given(st.text())
def test_every_text_comes_back_equal(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    (record,) = from_csv(to_csv([], [[guarded(text), "end"]]))
    assert bare(record[0]) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_text(text: str) -> None:
    assert not guarded(text).lstrip().startswith(("=", "+", "-", "@"))
    (record,) = from_csv(to_csv([], [[guarded(text), "end"]]))
    assert bare(record[0]) == text


def test_the_form_holds_texts_as_data_alone() -> None:
    items = [Item(text, "", (text, text), "all", ("", "")) for text in HOSTILE]
    _, (sheet,) = blind(items, ["a", "b"], by="", about={}, raters=1, seed=0)
    html = page(sheet, file="r1.csv")
    assert html.count("<script") == 2
    assert "onerror=alert" in html
    assert "<img" not in html
    assert "http" not in html.split('id="data"')[0].replace("http-equiv", "")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_a_spreadsheet_saves_is_read(delimiter: str) -> None:
    key, (sheet,) = made()
    found = judgements([("r1.csv", filled(sheet, delimiter=delimiter, change=lambda rows: rows[1:].reverse()))], key)
    assert len(found) == 6
    assert all(one.preferred == one.order[0] and one.ratings[one.order[0]] == 4 and one.notes == "=note" for one in found)
    utf16 = filled(sheet, delimiter=delimiter).decode("utf-8-sig").encode("utf-16")
    assert judgements([("r1.csv", utf16)], from_json(to_json(key))) == found


def test_orders_are_balanced_and_of_each_rater_their_own() -> None:
    orders = balanced(50, 3, np.random.default_rng(0))
    for place in range(3):
        assert max(Counter(order[place] for order in orders).values()) - min(Counter(order[place] for order in orders).values()) <= 1
    key, sheets = made(11, raters=2)
    assert [row.id for row in sheets[0].rows] != [row.id for row in sheets[1].rows]
    for rows in key.raters.values():
        assert sorted(Counter(row.order for row in rows).values()) == [5, 6]
    assert to_json(made(11, raters=2)[0]) == to_json(key)


def _set(row: int, column: int, text: str) -> Callable[[list[list[str]]], None]:
    def change(records: list[list[str]]) -> None:
        records[row][column] = text

    return change


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        (_set(2, 1, "another prompt"), "r1.csv:3", "its prompt, reference or answers were changed"),
        (_set(3, 4, "a better answer"), "r1.csv:4", "its prompt, reference or answers were changed"),
        (_set(1, 9, "x00"), "r1.csv:2", "the column `row` was changed"),
        (_set(4, 5, "6"), "r1.csv:5", "rating_A is '6', expected a whole number from 1 to 5"),
        (_set(4, 6, ""), "r1.csv:5", "rating_B is empty"),
        (_set(4, 6, "4.5"), "r1.csv:5", "rating_B is '4.5'"),
        (_set(1, 7, "C"), "r1.csv:2", "preferred is 'C', expected A, B or tie"),
        (_set(1, 7, ""), "r1.csv:2", "preferred is empty"),
        (_set(1, 0, "q999"), "r1.csv:2", "there is no item 'q999'"),
        (_set(0, 3, "answer_1"), "r1.csv:1", "expected the columns id, prompt"),
        (_set(2, 10, "k0-r1"), "r1.csv:3", "comes from another sheet"),
        (lambda rows: rows.append(list(rows[1])), "r1.csv:8", "is there twice; the first is in row 2"),
        (lambda rows: rows.pop(), "r1.csv", "is missing"),
        (lambda rows: rows[2].pop(), "r1.csv:3", "has 10 cells, expected 11"),
        (lambda rows: rows.__delitem__(slice(1, None)), "r1.csv", "has no rows"),
    ],
)
def test_what_was_changed_is_refused(change: Callable[[list[list[str]]], None], where: str, message: str) -> None:
    key, (sheet,) = made()
    with pytest.raises(DataError) as error:
        judgements([("r1.csv", filled(sheet, change=change))], key)
    assert any(problem.where == where and message in problem.message for problem in error.value.problems), str(error.value)


def test_all_that_is_wrong_is_told_at_once() -> None:
    key, (sheet,) = made()

    def change(records: list[list[str]]) -> None:
        records[1][5], records[2][7], records[3][1] = "0", "both", "edited"

    with pytest.raises(DataError) as error:
        judgements([("a.csv", filled(sheet, change=change)), ("b.csv", filled(sheet)), ("c.csv", b"\xff\xfa")], key)
    assert [problem.where for problem in error.value.problems] == ["a.csv:2", "a.csv:3", "a.csv:4", "b.csv", "c.csv"]


def test_a_shuffled_key_is_refused() -> None:
    key, (sheet,) = made()
    content = json.loads(to_json(key))
    for row in content["raters"]["r1"]:
        row["order"].reverse()
    with pytest.raises(ValueError, match="was changed since"):
        from_json(json.dumps(content))
    rows = tuple(dataclasses.replace(row, order=row.order[::-1]) for row in key.raters["r1"])
    forged = from_json(to_json(dataclasses.replace(key, raters={"r1": rows})))
    with pytest.raises(DataError, match="belongs to another key"):
        judgements([("r1.csv", filled(sheet))], forged)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "other"}', '{"format": "posttrain human-eval key 1"}'])
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(ValueError, match=r"Expecting|is no key"):
        from_json(text)


def test_strata() -> None:
    assert shares([60, 30, 10], 11) == [7, 3, 1]
    by_source = strata_of(["a"] * 30 + ["b"] * 10, ["x"] * 40)
    assert by_source.by == "source"
    places = sample(by_source, 8, np.random.default_rng(0))
    assert Counter(by_source.of[place] for place in places) == {"a": 6, "b": 2}
    assert len(set(places)) == 8
    by_length = strata_of(["a"] * 9, ["x" * k for k in range(1, 10)])
    assert (by_length.by, Counter(by_length.of)) == ("length", {"short": 3, "medium": 3, "long": 3})
    assert strata_of(["a"] * 9, ["x"] * 9).by == "nothing"
