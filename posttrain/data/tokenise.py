"""Rows -> tokenized Arrow batches: convert, encode, and count what is lost. In this process for little data, in several for much."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa

from posttrain.cores import usable_cores
from posttrain.data.chat import special_texts
from posttrain.data.encoders import Drop, Encoded, EncodeSettings
from posttrain.data.encoders import get as get_encoder
from posttrain.data.formats import Filtered, RowError
from posttrain.data.formats import get as get_format
from posttrain.data.guard import guard
from posttrain.data.rows import BadRow, Row
from posttrain.data.texts import characters, check_parsed, check_texts
from posttrain.data.tokenized import SCHEMA, runs_of
from posttrain.types import Example

BATCH = 256  # most rows of a batch
CHARACTERS = 1 << 18  # a batch is full with: the tokenizer needs hundreds of bytes for each
PARALLEL_AFTER = 20_000  # rows; before that, starting processes costs more than it saves
AHEAD = 2  # batches in flight for each process, so that memory stays flat
MOST_WORKERS = 16


@dataclass(frozen=True)
class Batch:
    """The outcome of some rows. table: their examples. guarded: rows with special tokens in their texts. dropped, filtered: counts by
    reason. losses: every row that was lost, and why."""

    table: pa.RecordBatch
    rows: int
    kept: int
    bad: int
    guarded: int
    dropped: Counter[str]
    filtered: Counter[str]
    losses: list[tuple[str, str]]


@dataclass(frozen=True)
class RowEncoder:
    """Rows to a Batch; pickles, so that other processes can run it."""

    tokenizer: Any
    format: str
    kind: str
    settings: EncodeSettings
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, rows: Sequence[tuple[int, Row | BadRow]]) -> Batch:
        """Encode numbered rows."""
        converted = [(number, row, example) for number, row in rows for example in self._convert(row)]
        good = [example for _, _, example in converted if isinstance(example, Example)]
        outcomes = iter(get_encoder(self.kind)(good, self.tokenizer, self.settings))
        watch = guard(special_texts(self.tokenizer))
        guarded = {number for number, _, x in converted if isinstance(x, Example) and watch.finds_any(x)}
        return _batch([(number, row, next(outcomes) if isinstance(x, Example) else x) for number, row, x in converted], len(guarded))

    def _convert(self, row: Row | BadRow) -> Sequence[Example | Filtered | RowError]:
        """The row's examples: usually one."""
        if isinstance(row, BadRow):
            return [RowError(row.reason)]
        try:
            check_texts(row.value)
            found = get_format(self.format).convert(row.value, **self.options)
            examples = [found] if isinstance(found, Example | Filtered) else found
            for example in examples:
                if isinstance(example, Example):
                    check_parsed(example)
        except RowError as error:
            return [error]
        except Exception as error:
            error.add_note(f"while reading {row.file}:{row.line} as format {self.format}")
            raise
        return examples


def _batch(outcomes: Sequence[tuple[int, Row | BadRow, list[Encoded] | Drop | Filtered | RowError]], guarded: int) -> Batch:
    kept = [(number, row, encoded) for number, row, encoded in outcomes if isinstance(encoded, list)]
    bad = [(f"{row.file}:{row.line}", str(error)) for _, row, error in outcomes if isinstance(error, RowError)]
    drops = [(f"{row.file}:{row.line}", drop.reason) for _, row, drop in outcomes if isinstance(drop, Drop)]
    filtered = Counter(out.reason for _, _, out in outcomes if isinstance(out, Filtered))
    records = [_record(number, row, encoded) for number, row, several in kept for encoded in several]
    columns = [pa.array([record[name] for record in records], SCHEMA.field(name).type) for name in SCHEMA.names]
    dropped = Counter(reason for _, reason in drops)
    rows, good = (len({number for number, _, _ in some}) for some in (outcomes, kept))
    return Batch(pa.record_batch(columns, schema=SCHEMA), rows, good, len(bad), guarded, dropped, filtered, bad + drops)


def _record(number: int, row: Row | BadRow, encoded: Encoded) -> dict[str, Any]:
    tokens = encoded.tokens
    runs, values = runs_of(tokens.weights)
    return {
        "ids": tokens.ids,
        "weight_runs": runs,
        "weight_values": values,
        "segment_lengths": tokens.segment_lengths,
        "segment_parents": tokens.segment_parents,
        "marks": tokens.marks,
        "values": tokens.values,
        "length": len(tokens.ids),
        "target": float(tokens.weights.sum(dtype=np.float64)),
        "trained": int(np.count_nonzero(tokens.weights)),
        "document": number,
        "truncated": encoded.truncated,
        "origin": f"{row.file}:{row.line}",
        "answer": encoded.answer,
        "prompt": encoded.prompt,
        "facts": encoded.facts,
    }


def _batches(rows: Iterable[Row | BadRow]) -> Iterator[list[tuple[int, Row | BadRow]]]:
    """Numbered rows in batches of BATCH, or fewer where CHARACTERS are reached."""
    batch, size = [], 0
    for number, found in enumerate(rows):
        row, length = _measured(found)
        batch.append((number, row))
        size += length
        if len(batch) == BATCH or size >= CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _measured(row: Row | BadRow) -> tuple[Row | BadRow, int]:
    """The row and its characters; a row that is nested too deep to be sent to another process is a bad one."""
    if isinstance(row, BadRow):
        return row, 0
    try:
        return row, characters(row.value)
    except RowError as error:
        return BadRow(row.file, row.line, str(error)), 0


def encode_rows(rows: Iterable[Row | BadRow], encoder: RowEncoder, workers: int | None = None) -> Iterator[Batch]:
    """Batches in the order of the rows, whatever the number of processes."""
    batches = _batches(rows)
    workers = min(usable_cores(os.environ), MOST_WORKERS) if workers is None else workers
    if workers < 2:
        for batch in batches:  # not map: a StopIteration from a converter would pass for the end of the data
            yield encoder(batch)
        return
    for batch in islice(batches, PARALLEL_AFTER // BATCH):
        yield encoder(batch)
    first = next(batches, None)
    if first is not None:
        yield from _in_processes(chain([first], batches), encoder, workers)


def _in_processes(batches: Iterable[list[tuple[int, Row | BadRow]]], encoder: RowEncoder, workers: int) -> Iterator[Batch]:
    context = multiprocessing.get_context("spawn")  # a fork would copy the tokenizer's threads in an unknown state
    with ProcessPoolExecutor(workers, context, _start_worker, (encoder,)) as pool:
        waiting: deque[Future[Batch]] = deque()
        try:
            for batch in batches:
                waiting.append(pool.submit(_work, batch))
                if len(waiting) > workers * AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_worker: Callable[[Sequence[tuple[int, Row | BadRow]]], Batch]


def _start_worker(encoder: RowEncoder) -> None:
    global _worker  # noqa: PLW0603 (a process of the pool has one encoder, sent once)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted parent ends the pool itself
    _worker = encoder


def _work(rows: list[tuple[int, Row | BadRow]]) -> Batch:
    return _worker(rows)
