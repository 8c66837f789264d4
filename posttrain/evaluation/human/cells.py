"""Texts in the cells of a sheet: no spreadsheet takes one for a formula, a number or a date, and all come back as they were."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

MARK = "'"
PLAIN = re.compile(r"[A-Za-z]")  # how a text may begin without a mark
SHORT = 24  # characters; a shorter text may be read as a date, a month or a truth value
DELIMITERS = (",", ";", "\t")
BOMS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"))


class BadFile(ValueError):
    """Bytes that are no table of text."""


def guarded(text: str) -> str:
    """The text with `'` in front where a spreadsheet might compute or convert it. `bare` is its inverse, for every text."""
    harmless = not text or (PLAIN.match(text) and len(text) > SHORT)
    return text if harmless else MARK + text


def bare(cell: str) -> str:
    """What `guarded` was given."""
    return cell.removeprefix(MARK)


def same_lines(text: str) -> str:
    """Line ends as spreadsheets leave them: a digest must not depend on them."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def to_csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    """A table as CSV that spreadsheets open: UTF-8 with its mark, every cell quoted, CRLF. Cells are written as they are."""
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerows([header, *rows])
    return b"\xef\xbb\xbf" + out.getvalue().encode("utf-8")


def from_csv(content: bytes) -> list[list[str]]:
    """Records of a CSV as a browser or a spreadsheet saves it: commas, semicolons or tabs, any line ends, UTF-8 or UTF-16.

    Raises BadFile where it is no text, or no table.
    """
    text = _decoded(content)
    if text.lower().startswith("sep="):
        text = text.partition("\n")[2]
    delimiter = max(DELIMITERS, key=text.partition("\n")[0].count)
    limit = csv.field_size_limit(max(1, len(text)))
    try:
        records = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise BadFile(f"is no CSV: {error}") from error
    finally:
        csv.field_size_limit(max(limit, 131072))
    return [record for record in records if any(record)]


def _decoded(content: bytes) -> str:
    encoding = next((name for mark, name in BOMS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise BadFile(f"is not in UTF-8 (byte {error.start})") from error
