"""Readers: the rows of one open file, by kind of file. A reader streams; a broken row is a BadRow, a broken file a DataError."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from posttrain.data.rows import BadRow, Row, numbered, row_or_bad, without_nulls
from posttrain.errors import DataError, Problem

Reader = Callable[[BinaryIO, str], Iterator[Row | BadRow]]
DOCUMENTS = ("file", "line", "paragraph")
_HUB_ID = re.compile(r"(?:hf://)?[\w-][\w.-]*/[\w.-]+")
_GAP = re.compile(r"[\s,]*")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_AGAIN = "fetch or write it again"
_HINT = "save it as UTF-8, for example: iconv -f LATIN1 -t UTF-8"


def read_jsonl(stream: BinaryIO, file: str) -> Iterator[Row | BadRow]:
    """One JSON object a line; blank lines are skipped."""
    for line, raw in enumerate(stream, 1):
        if line == 1:
            _refuse_utf16(raw, file)
            raw = raw.removeprefix(codecs.BOM_UTF8)  # noqa: PLW2901
        if raw.strip():
            yield _json_row(raw, file, line)


def _json_row(raw: bytes, file: str, line: int) -> Row | BadRow:
    try:
        return row_or_bad(json.loads(raw.decode("utf-8")), file, line)
    except UnicodeDecodeError as error:
        return BadRow(file, line, f"not UTF-8 at byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        return BadRow(file, line, f"broken JSON: {error.msg} at column {error.colno}")
    except (RecursionError, ValueError) as error:
        return BadRow(file, line, f"broken JSON: {_limit(error)}")


def _limit(error: Exception) -> str:
    """What a JSON text has too much of for the parser."""
    return "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def read_json(stream: BinaryIO, file: str) -> Iterator[Row | BadRow]:
    """A JSON array of objects, objects one after the other, or one object that holds a list of them under its only list key."""
    values = _json_values(_text(stream, file), file)
    head = list(islice(values, 2))
    rows = _rows_in(head[0][1]) if len(head) == 1 and not head[0][0] else None
    yield from numbered((value for _, value in chain(head, values)) if rows is None else rows, file)


def _rows_in(value: Any) -> list[Any] | None:
    """The rows that an object holds under its only key for such; None where it is a row itself. A null among them is a bad row."""
    if not isinstance(value, dict) or _is_conversation(value):
        return None
    found = [item for item in value.values() if isinstance(item, list) and any(item) and all(isinstance(v, dict | None) for v in item)]
    return found[0] if len(found) == 1 else None


def _is_conversation(value: dict[str, Any]) -> bool:
    return any(key in value for key in ("messages", "conversations", "conversation"))


def _json_values(text: io.TextIOBase, file: str) -> Iterator[tuple[bool, Any]]:
    """Values of a JSON array, or values one after the other, parsed piece by piece, each with whether it is of an array."""
    decoder, buffer, place, line = json.JSONDecoder(), "", 0, 1
    array: bool | None = None  # not known before the first character
    while True:
        gap = _GAP.match(buffer, place)
        assert gap is not None  # the pattern matches the empty string
        line, place = line + gap[0].count("\n"), gap.end()
        if array is None and place < len(buffer):
            array = buffer[place] == "["
            place += array
            continue
        if array and buffer.startswith("]", place):
            _refuse_rest(buffer[place + 1 :], text, f"{file}:{line}")
            return
        try:
            value, end = decoder.raw_decode(buffer, place)
        except json.JSONDecodeError as error:
            piece = text.read(max(1 << 16, len(buffer) - place))
            if not piece and place == len(buffer):
                if array:
                    raise DataError(Problem(f"{file}:{line}", "broken JSON: the file ends inside its array", _AGAIN)) from error
                return
            if not piece:
                where = f"{file}:{line + buffer.count(chr(10), place, error.pos)}"
                raise DataError(Problem(where, f"broken JSON: {error.msg} at column {error.colno}")) from error
            buffer, place = buffer[place:] + piece, 0
            continue
        except (RecursionError, ValueError) as error:
            raise DataError(Problem(f"{file}:{line}", f"broken JSON: {_limit(error)}")) from error
        line, place = line + buffer.count("\n", place, end), end
        yield bool(array), value


def _refuse_rest(rest: str, text: io.TextIOBase, where: str) -> None:
    """Nothing but blanks may follow the array: rows after it would be lost."""
    while rest or (rest := text.read(1 << 16)):
        if rest.strip():
            raise DataError(Problem(where, f"broken JSON: more text after the end of the array: {rest.strip()[:20]!r}", _AGAIN))
        rest = ""


def read_table(stream: BinaryIO, file: str, *, delimiter: str) -> Iterator[Row | BadRow]:
    """CSV or TSV with a header; a byte-order mark is dropped, quoted fields may hold newlines."""
    csv.field_size_limit(1 << 30)
    reader = csv.reader(_text(stream, file, newline=""), delimiter=delimiter, strict=True)
    start = 1
    try:
        header = _header(next(reader, []), file)
        start = reader.line_num + 1
        for cells in reader:
            if len(cells) == len(header):
                yield Row(dict(zip(header, cells, strict=True)), file, start)
            elif cells:
                yield BadRow(file, start, f"{len(cells)} fields where the header has {len(header)}")
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(Problem(f"{file}:{start}", f"broken table: {error}", "a quote inside a field is written twice")) from error


def _header(names: list[str], file: str) -> list[str]:
    names = [name.strip() for name in names]
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise DataError(Problem(f"{file}:1", f"the header names {', '.join(map(repr, doubles))} more than once"))
    return names


def read_parquet(stream: BinaryIO, file: str) -> Iterator[Row | BadRow]:
    """Rows of a parquet file, a batch at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = stream if stream.seekable() and isinstance(stream, io.BufferedReader) else io.BytesIO(stream.read())
    try:
        batches = pq.ParquetFile(source).iter_batches(batch_size=1024)
        yield from numbered((without_nulls(row) for batch in batches for row in batch.to_pylist()), file)
    except pa.ArrowException as error:
        raise DataError(Problem(file, f"broken parquet file: {error}")) from error


def read_text(stream: BinaryIO, file: str, *, documents: str = "file") -> Iterator[Row | BadRow]:
    """Plain text as rows with a `text` field: the file, each line, or each paragraph (blank lines between) is a document."""
    text = _text(stream, file)
    if documents == "file":
        yield Row({"text": text.read()}, file, 1)
        return
    for line, document in enumerate(text, 1) if documents == "line" else _paragraphs(text):
        if document.strip():
            yield Row({"text": document.rstrip("\n")}, file, line)


def _paragraphs(text: io.TextIOBase) -> Iterator[tuple[int, str]]:
    """Blocks between blank lines, each with the number of its first line."""
    held: list[str] = []
    for line, words in enumerate(text, 1):
        if words.strip():
            held.append(words)
        elif held:
            yield line - len(held), "".join(held)
            held = []
    if held:
        yield line - len(held) + 1, "".join(held)


def _text(stream: BinaryIO, file: str, newline: str | None = None) -> io.TextIOWrapper:
    """`stream` as strict UTF-8 text; a byte that is not is a DataError with its place."""
    wrapped: Any = _CheckedUtf8(stream, file)
    return io.TextIOWrapper(wrapped, encoding="utf-8", newline=newline)


def _refuse_utf16(head: bytes, file: str) -> None:
    if head.startswith(_UTF16):
        raise DataError(Problem(file, "is UTF-16, expected UTF-8", "iconv -f UTF-16 -t UTF-8"))


class _CheckedUtf8(io.BufferedIOBase):
    """Bytes that are checked to be UTF-8 as they pass, so that an error can name the line; drops a byte-order mark."""

    def __init__(self, stream: BinaryIO, file: str):
        self._stream, self._file = stream, file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._line, self._first = 1, True

    def readable(self) -> bool:
        return True

    def read1(self, size: int | None = -1) -> bytes:
        return self.read(size)

    def read(self, size: int | None = -1) -> bytes:
        piece = self._stream.read(-1 if size is None else size)
        if self._first and piece:
            _refuse_utf16(piece, self._file)
            piece, self._first = piece.removeprefix(codecs.BOM_UTF8) or self._stream.read(1), False
        try:
            self._decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            line = self._line + error.object[: error.start].count(b"\n")
            raise DataError(Problem(f"{self._file}:{line}", "not UTF-8 text", _HINT)) from error
        self._line += piece.count(b"\n")
        return piece


READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": partial(read_table, delimiter=","),
    ".tsv": partial(read_table, delimiter="\t"),
    ".parquet": read_parquet,
    ".txt": read_text,
}


def kind_of(path: Path) -> str | None:
    """The suffix that decides how `path` is read (`.jsonl` for `a.jsonl.gz`), or None."""
    from posttrain.data.streams import COMPRESSIONS

    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in READERS else None


def is_hub_id(place: str) -> bool:
    """`owner/name` (or `hf://owner/name`) that is neither a path on this machine nor looks like a file."""
    if place.startswith("hf://"):
        return True
    return _HUB_ID.fullmatch(place) is not None and not Path(place).exists() and kind_of(Path(place)) is None and "*" not in place
