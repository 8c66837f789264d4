"""Tokenized examples on disk: the Arrow columns, and the set that reads them back without loading them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from posttrain.data.reference_logps import ReferenceLogps
from posttrain.data.work import joined_parents, segments_attended, sums
from posttrain.types import TokenizedExample

# ids and segments as lists; weights as runs (lengths and values), for they are long stretches of 0 and 1. origin: file:row.
# document: number of the row within its source. target: sum of the loss weights. trained: places whose weight is not 0.
SCHEMA = pa.schema(
    [
        ("ids", pa.list_(pa.int32())),
        ("weight_runs", pa.list_(pa.int32())),
        ("weight_values", pa.list_(pa.float32())),
        ("segment_lengths", pa.list_(pa.int32())),
        ("segment_parents", pa.list_(pa.int32())),
        ("marks", pa.list_(pa.int32())),
        ("values", pa.list_(pa.float32())),
        ("length", pa.int32()),
        ("target", pa.float32()),
        ("trained", pa.int32()),
        ("document", pa.int64()),
        ("truncated", pa.bool_()),
        ("origin", pa.string()),
        ("answer", pa.string()),
        ("prompt", pa.string()),
        ("facts", pa.string()),
    ]
)


LISTS = tuple(field.name for field in SCHEMA if pa.types.is_list(field.type))


def runs_of(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Run lengths and values of a sequence of weights."""
    starts = np.flatnonzero(np.concatenate([[True], weights[1:] != weights[:-1]]))
    return np.diff(np.append(starts, len(weights))).astype(np.int32), weights[starts]


def under_new_name(where: str, renamed: Mapping[str, str]) -> str:
    """`file:row` with the new name of a file that was renamed."""
    file, mark, row = where.rpartition(":")
    return f"{renamed.get(file, file)}{mark}{row}"


class Part:
    """The examples of one source: an Arrow stream file, memory-mapped. Pickles as its path.

    renamed: of files that had other names when they were tokenized, the new ones by the old.
    """

    def __init__(self, path: Path, renamed: Mapping[str, str] | None = None):
        self.path, self.renamed = path, renamed or {}
        with pa.memory_map(str(path)) as source:
            self._table = pa.ipc.open_stream(source).read_all()
        sizes = [len(chunk) for chunk in self._table.column("ids").chunks]
        self._views: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
        self._ends = np.cumsum(sizes) if sizes else np.zeros(0, np.int64)

    def __reduce__(self) -> tuple[type[Part], tuple[Path, Mapping[str, str]]]:
        return Part, (self.path, self.renamed)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def scalars(self, column: str) -> np.ndarray:
        """A column of numbers as an array."""
        return np.asarray(self._table.column(column).to_numpy())

    def value(self, column: str, index: int) -> Any:
        """One value of a column."""
        found = self._table.column(column)[index].as_py()
        return under_new_name(found, self.renamed) if column == "origin" else found

    def values(self, rows: np.ndarray) -> np.ndarray:
        """float32: the values at the marks of some examples, joined."""
        return np.asarray(self._table.column("values").take(pa.array(rows)).combine_chunks().flatten().to_numpy())

    def attended(self) -> np.ndarray:
        """float64: (query, key) products of each example's attention."""
        lengths, parents = (self._table.column(name).combine_chunks() for name in ("segment_lengths", "segment_parents"))
        if not len(lengths):
            return np.zeros(0)
        offsets = lengths.offsets.to_numpy().astype(np.int64)
        flat, above = (array.values.to_numpy()[offsets[0] : offsets[-1]] for array in (lengths, parents))
        offsets = offsets - offsets[0]
        return sums(segments_attended(flat, joined_parents(above, offsets)), offsets)

    def filled(self, column: str) -> np.ndarray:
        """Whether each row has a value in a column."""
        return np.asarray(self._table.column(column).is_valid().to_numpy())

    def example(self, index: int) -> TokenizedExample:
        """One example; its arrays are the caller's own."""
        chunk = int(np.searchsorted(self._ends, index, side="right"))
        place = index - (int(self._ends[chunk - 1]) if chunk else 0)
        found = (data[ends[place] : ends[place + 1]] for ends, data in self._lists(chunk))
        ids, runs, weights, lengths, parents, marks, values = (array.copy() for array in found)
        return TokenizedExample(ids, np.repeat(weights, runs), lengths, parents, marks, values)

    def _lists(self, chunk: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Offsets and values of the list columns in one chunk: views of the mapped file."""
        if chunk not in self._views:
            arrays = [self._table.column(name).chunk(chunk) for name in LISTS]
            self._views[chunk] = [(array.offsets.to_numpy(), array.values.to_numpy()) for array in arrays]
        return self._views[chunk]


@dataclass(frozen=True)
class TokenizedSet:
    """Examples of one or more sources, memory-mapped; index -> TokenizedExample.

    parts: the sources. part_of [N], index_of [N]: where example i lies. names: of the sources. weights: their shares of the mixture.
    exhaustion: stop or repeat, see `posttrain.data.mixture`. reference: of each part, what the reference policy gives its examples.
    """

    parts: Sequence[Part]
    part_of: np.ndarray
    index_of: np.ndarray
    names: tuple[str, ...]
    weights: tuple[float, ...]
    exhaustion: str = "stop"
    reference: tuple[ReferenceLogps, ...] | None = None

    def __len__(self) -> int:
        return len(self.index_of)

    def __getitem__(self, index: int) -> TokenizedExample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        part, row = self.part_of[index], int(self.index_of[index])
        example = self.parts[part].example(row)
        return example if self.reference is None else replace(example, reference=self.reference[part].of(row, example))

    @cached_property
    def lengths(self) -> np.ndarray:
        """int32 [N]: tokens of each example's tree."""
        return self.column("length").astype(np.int32)

    @cached_property
    def targets(self) -> np.ndarray:
        """float32 [N]: sum of each example's loss weights."""
        return self.column("target").astype(np.float32)

    @cached_property
    def trained(self) -> np.ndarray:
        """int32 [N]: targets of each example."""
        return self.column("trained").astype(np.int32)

    @cached_property
    def attended(self) -> np.ndarray:
        """float64 [N]: (query, key) products of each example's attention."""
        out = np.zeros(len(self))
        for number, part in enumerate(self.parts):
            mine = self.part_of == number
            out[mine] = part.attended()[self.index_of[mine]]
        return out

    @property
    def source_of(self) -> np.ndarray:
        """int [N]: the source of each example."""
        return self.part_of

    @property
    def source_weights(self) -> np.ndarray:
        """float64 [sources]: shares of the mixture, summing to 1."""
        shares = np.asarray(self.weights, np.float64)
        return shares / shares.sum()

    def column(self, name: str) -> np.ndarray:
        """A column of numbers, in the order of the set."""
        out = np.zeros(len(self), self.parts[0].scalars(name).dtype)
        for number, part in enumerate(self.parts):
            mine = self.part_of == number
            out[mine] = part.scalars(name)[self.index_of[mine]]
        return out

    def values(self) -> np.ndarray:
        """float32: what is known at the marks of all examples (`TokenizedExample.values`), one example after the other."""
        found = [part.values(self.index_of[self.part_of == number]) for number, part in enumerate(self.parts)]
        return np.concatenate([np.zeros(0, np.float32), *found])

    def value(self, name: str, index: int) -> Any:
        """One value of one example: origin, answer, prompt, ..."""
        return self.parts[self.part_of[index]].value(name, int(self.index_of[index]))

    def with_value(self, name: str) -> np.ndarray:
        """Indices of the examples that have a value in a column."""
        out = np.zeros(len(self), bool)
        for number, part in enumerate(self.parts):
            mine = self.part_of == number
            out[mine] = part.filled(name)[self.index_of[mine]]
        return np.flatnonzero(out)

    @property
    def sizes(self) -> list[int]:
        """Examples of each source; a source's examples follow those of the one before."""
        return np.bincount(self.part_of, minlength=len(self.names)).tolist()


def whole(parts: Sequence[Part], names: tuple[str, ...], weights: tuple[float, ...], exhaustion: str) -> TokenizedSet:
    """All examples of all parts, in order."""
    return chosen(parts, [np.arange(len(part)) for part in parts], names, weights, exhaustion)


def chosen(
    parts: Sequence[Part], rows: Sequence[np.ndarray], names: tuple[str, ...], weights: tuple[float, ...], exhaustion: str
) -> TokenizedSet:
    """The examples `rows[s]` of each part s, part after part."""
    part_of = np.repeat(np.arange(len(parts), dtype=np.int16), [len(r) for r in rows])
    index_of = np.concatenate([np.asarray(r, np.int64) for r in rows]) if rows else np.zeros(0, np.int64)
    return TokenizedSet(tuple(parts), part_of, index_of, names, weights, exhaustion)
