"""The whole way from a `data` node to tokenized train and validation sets: read, detect, convert, tokenize, cache, split."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from posttrain.data.cache import cache_root, fetch
from posttrain.data.detection import SHOWN, format_of
from posttrain.data.encoders import EncodeSettings, check_format, readable
from posttrain.data.encoders import get as get_encoder
from posttrain.data.encoders.prompts import PROMPT
from posttrain.data.formats import options_of
from posttrain.data.guard import GUARD
from posttrain.data.mixture import epoch_counts
from posttrain.data.report import DataReport, SourceReport
from posttrain.data.settings import DataSettings, SourceSpec, read_settings
from posttrain.data.sources import check_sources, content_digest, origin_of, read_rows, row_files
from posttrain.data.spans import encode_ids
from posttrain.data.split import split
from posttrain.data.tokenise import Batch, RowEncoder, encode_rows
from posttrain.data.tokenized import SCHEMA, Part, TokenizedSet, chosen, under_new_name, whole
from posttrain.errors import DataError, Problem

log = logging.getLogger(__name__)

LISTED = 1000  # lost rows that a report lists
TOLD = 100_000  # rows between two lines in the log
EXAMPLES = "examples.arrow"


@dataclass(frozen=True)
class CheckableExample:
    """A validation example whose answer can be checked. prompt_ids: int32 [T]. example_index: its place in the validation set."""

    prompt_ids: np.ndarray
    prompt_text: str
    answer: str
    example_index: int


@dataclass(frozen=True)
class Checkables(Sequence[CheckableExample]):
    """The checkable examples of a set, tokenized as they are asked for."""

    examples: TokenizedSet
    tokenizer: Any
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, place: int) -> CheckableExample: ...
    @overload
    def __getitem__(self, place: slice) -> Checkables: ...
    def __getitem__(self, place: int | slice) -> CheckableExample | Checkables:
        if isinstance(place, slice):
            return replace(self, indices=self.indices[place])
        index = int(self.indices[place])
        prompt = str(self.examples.value("prompt", index))
        ids = encode_ids(self.tokenizer, [prompt])[0]
        return CheckableExample(ids, prompt.replace(GUARD, ""), str(self.examples.value("answer", index)), index)


@dataclass(frozen=True)
class Prepared:
    """What a run trains and validates on."""

    train: TokenizedSet
    val: TokenizedSet | None
    report: DataReport
    val_checkable: Sequence[CheckableExample]


def prepare(data: Mapping[str, Any], tokenizer: Any, *, kind: str, max_length: int, limit: int | None = None) -> Prepared:
    """Tokenized data of a `data` node.

    kind: what the method trains on (conversation, text). max_length: tokens of a sequence. limit: most rows read of each source.
    Raises ConfigError for wrong settings and DataError for missing, broken or unusable data, each with every problem found.
    """
    settings = read_settings(data)
    if missing := check_sources([*settings.train, *settings.val]):
        raise DataError(missing)
    get_encoder(kind)
    job = _Job(tokenizer, kind, settings, EncodeSettings(max_length, *_encoding(settings)), cache_root(settings.cache_dir), limit)
    trained = [job.source(spec, "train") for spec in settings.train]
    checked = [job.source(spec, "val") for spec in settings.val]
    train, val, notes = _sets(settings, trained, checked)
    if data.get("val_split") and not settings.val:
        notes.append(f"data.val_split={data['val_split']} is not used: it names a split of a hub data set")
    reports = tuple(report for _, report in (*trained, *checked))
    indices = np.zeros(0, np.int64) if val is None else val.with_value("answer")
    checkable: Sequence[CheckableExample] = () if val is None else Checkables(val, tokenizer, indices)
    folders, weights = [Path(report.folder).name for report in reports], [spec.weight for spec in settings.train]
    fingerprint = _hash(folders, weights, settings.exhaustion, settings.split_seed, settings.val_fraction)
    report = DataReport(reports, fingerprint, tuple(notes), len(train), 0 if val is None else len(val))
    return Prepared(train, val, report, checkable)


def _encoding(settings: DataSettings) -> tuple[Any, ...]:
    return settings.truncation, settings.train_on, settings.system, settings.template_kwargs, tuple(settings.attributes)


Source = tuple[Part, SourceReport]


def _sets(
    settings: DataSettings, trained: Sequence[Source], checked: Sequence[Source]
) -> tuple[TokenizedSet, TokenizedSet | None, list[str]]:
    names, weights = tuple(spec.name for spec in settings.train), tuple(spec.weight for spec in settings.train)
    parts = [part for part, _ in trained]
    if checked:
        train = whole(parts, names, weights, settings.exhaustion)
        val = whole([part for part, _ in checked], tuple(report.name for _, report in checked), (1.0,) * len(checked), "stop")
        return train, val, _mixture_notes(train)
    splits = [split(part.scalars("document"), settings.val_fraction, settings.split_seed) for part in parts]
    train = chosen(parts, [rows for rows, _, _ in splits], names, weights, settings.exhaustion)
    val = chosen(parts, [rows for _, rows, _ in splits], names, weights, settings.exhaustion)
    said = [note if len(parts) == 1 else f"{name}: {note}" for name, (_, _, note) in zip(names, splits, strict=True)]
    return train, val if len(val) else None, said + _mixture_notes(train)


def _mixture_notes(train: TokenizedSet) -> list[str]:
    """How an epoch of a mixture uses its sources."""
    if len(train.names) == 1:
        return []
    counts = epoch_counts(train.sizes, train.source_weights, train.exhaustion)
    notes = []
    for name, size, count in zip(train.names, train.sizes, counts.tolist(), strict=True):
        used = f"{count} of its {size} examples" if count <= size else f"its {size} examples and {count - size} repetitions"
        notes.append(f"{name}: an epoch sees {used} ({count / counts.sum():.1%})")
    return notes


@dataclass(frozen=True)
class _Job:
    """What all sources of a preparation share."""

    tokenizer: Any
    kind: str
    settings: DataSettings
    encode: EncodeSettings
    root: Path
    limit: int | None

    def source(self, spec: SourceSpec, role: str) -> Source:
        """The tokenized examples of one source, from the cache or built."""
        digest = content_digest(spec)
        options = [spec.format, dict(spec.format_options), self.settings.on_error, self.limit, self.kind, asdict(self.encode)]
        key = _hash(digest, tokenizer_digest(self.tokenizer), options, code_digest())
        folder, meta, cached = fetch(self.root, key, lambda work: self._build(spec, work))
        # the key is by contents: files may have had other names when they were tokenized
        renamed = {old: new for old, new in zip(meta["names"], row_files(spec), strict=True) if old != new}
        losses = tuple((under_new_name(where, renamed), str(reason)) for where, reason in meta["losses"])
        facts: dict[str, Any] = {name: value for name, value in meta.items() if name not in ("losses", "files", "names")}
        facts |= {"name": spec.name, "origin": origin_of(spec), "part": role, "digest": digest}
        report = SourceReport(**facts, losses=losses, cached=cached, folder=str(folder))
        _log_losses(report)
        return Part(folder / EXAMPLES, renamed), report

    def _build(self, spec: SourceSpec, work: Path) -> dict[str, Any]:
        rows = read_rows(spec, self.limit)
        form, rows = format_of(spec, rows, readable(self.kind))
        check_format(self.kind, form, origin_of(spec))
        encoder = RowEncoder(self.tokenizer, form.name, self.kind, self.encode, options_of(form, spec.format_options))
        known = {"format": form.name, "names": row_files(spec)}
        return known | self._write(spec, encode_rows(rows, encoder, self.settings.workers), work / EXAMPLES)

    def _write(self, spec: SourceSpec, batches: Iterator[Batch], path: Path) -> dict[str, Any]:
        total = _Totals()
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
            for batch in batches:
                total.add(batch)
                if total.rows // TOLD > (total.rows - batch.rows) // TOLD:
                    log.info("%s: %d rows tokenized", spec.name, total.rows)
                if batch.table.num_rows:
                    writer.write_batch(batch.table)
        if total.bad and self.settings.on_error == "raise":
            raise DataError(total.problems())
        if not total.examples:
            raise DataError(Problem(origin_of(spec), f"nothing is left to train on: {total.summary()}", *total.advice()))
        return total.facts()


class _Totals:
    """Running sums over batches."""

    def __init__(self) -> None:
        self.rows = self.kept = self.bad = self.examples = self.tokens = self.trained = self.truncated = self.guarded = 0
        self.dropped: Counter[str] = Counter()
        self.filtered: Counter[str] = Counter()
        self.bad_rows: list[tuple[str, str]] = []
        self.dropped_rows: list[tuple[str, str]] = []

    def add(self, batch: Batch) -> None:
        """Count a batch."""
        self.rows += batch.rows
        self.kept += batch.kept
        self.bad += batch.bad
        self.guarded += batch.guarded
        self.examples += batch.table.num_rows
        for name, column in (("tokens", "length"), ("trained", "trained"), ("truncated", "truncated")):
            values = batch.table.column(column).to_numpy(zero_copy_only=False)
            setattr(self, name, getattr(self, name) + int(values.sum(dtype=np.int64)))
        self.dropped += batch.dropped
        self.filtered += batch.filtered
        self.bad_rows += batch.losses[: batch.bad][: LISTED - len(self.bad_rows)]
        self.dropped_rows += batch.losses[batch.bad :][: LISTED - len(self.dropped_rows)]

    def problems(self) -> list[Problem]:
        """The first bad rows, and how many there are in all."""
        shown = [Problem(where, reason) for where, reason in self.bad_rows[:SHOWN]]
        if self.bad > len(shown):
            shown.append(Problem("data", f"{self.bad} of {self.rows} rows are bad, the first {len(shown)} are listed"))
        return [*shown[:-1], replace(shown[-1], hint="mend the rows, or leave them out with data.on_error=skip")]

    def summary(self) -> str:
        """Why rows were lost, with counts."""
        reasons = [*self.dropped.items(), *((f"filtered by {name}", count) for name, count in self.filtered.items())]
        bad = [(f"bad, for example {self.bad_rows[0][1]}", self.bad)] if self.bad else []
        return f"of {self.rows} rows " + "; ".join(f"{count}: {reason}" for reason, count in [*bad, *reasons])

    def advice(self) -> tuple[str, ...]:
        """What to do about rows that keep no target."""
        if any("truncation" in reason for reason in self.dropped):
            return ("raise max_length, or set data.truncation=left",)
        kept = "left" if any(PROMPT in reason for reason in self.dropped) else "right"
        return (f"raise max_length, or set data.truncation={kept}",) if any("max_length" in reason for reason in self.dropped) else ()

    def facts(self) -> dict[str, Any]:
        """All of it, for the report."""
        kept = {name: value for name, value in vars(self).items() if name not in ("bad_rows", "dropped_rows")}
        return kept | {"losses": [*self.bad_rows, *self.dropped_rows][:LISTED]}


def _log_losses(report: SourceReport) -> None:
    if report.guarded:
        log.warning("%s: %d rows write special tokens of the tokenizer in their texts; there they are text", report.name, report.guarded)
    if report.lost:
        log.warning("%s: %d of %d rows give no example", report.name, report.lost, report.rows)
        for number, (where, reason) in enumerate(report.losses):
            # The first few on the terminal, all of them in log.txt.
            log.info("%s: %s", where, reason, extra={"file_only": number >= 5})


def tokenizer_digest(tokenizer: Any) -> str:
    """blake2b of all of a tokenizer that decides tokens: its backend, special tokens, chat template.

    How it truncates and pads is left out: nothing is encoded so here, and the first call of a tokenizer resets what its file says of it.
    """
    if tokenizer.is_fast:
        backend = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    else:
        backend = sorted(tokenizer.get_vocab().items())
    return _hash(type(tokenizer).__name__, backend, {k: str(v) for k, v in tokenizer.special_tokens_map.items()}, tokenizer.chat_template)


@cache
def code_digest() -> str:
    """blake2b of what turns rows into tokens: the sources of this package, the versions of the libraries underneath."""
    folder = Path(__file__).parent
    sources = [(str(file.relative_to(folder)), file.read_text(encoding="utf-8")) for file in sorted(folder.rglob("*.py"))]
    return _hash(sources, [(name, version(name)) for name in ("transformers", "tokenizers", "jinja2", "pyarrow")])


def _hash(*values: Any) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
