"""Scores of single examples, kept beside the means they make, so that runs can be compared example by example."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from posttrain.types import TokenizedExample

# metric: as in result.json. example: what was asked, as a hash. sample: number of the answer, 0 for a greedy one.
# value: its score. weight: of the example in the mean, such as the tokens of a loss.
SCHEMA = pa.schema(
    [
        ("metric", pa.dictionary(pa.int32(), pa.string())),
        ("example", pa.string()),
        ("sample", pa.int32()),
        ("value", pa.float64()),
        ("weight", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Scores:
    """One metric, example by example, [N] each. examples: names from `names_of`. weights: None = all alike. samples: None = one each."""

    examples: Sequence[str]
    values: np.ndarray
    weights: np.ndarray | None = None
    samples: np.ndarray | None = None

    @property
    def mean(self) -> float:
        """The weighted mean over the rows."""
        return float(np.average(self.values, weights=self.weights))


def names_of(contents: Iterable[str | bytes]) -> list[str]:
    """A name for each example by what is asked: 16 hex digits of blake2b, and its number where the same is asked again."""
    seen: Counter[str] = Counter()
    names = []
    for content in contents:
        digest = hashlib.blake2b(content if isinstance(content, bytes) else content.encode(), digest_size=8).hexdigest()
        names.append(f"{digest}-{seen[digest]}" if seen[digest] else digest)
        seen[digest] += 1
    return names


def content_of(example: TokenizedExample) -> bytes:
    """What the model sees of a tokenized example, and what of it is asked."""
    return b"".join(np.ascontiguousarray(part).tobytes() for part in (example.ids, example.weights, example.segment_parents))


def write_scores(path: Path, scores: Mapping[str, Scores]) -> None:
    """Write the scores of each metric as one parquet file. The caller sees to its being written whole."""
    tables = [_table(metric, found) for metric, found in scores.items()]
    pq.write_table(pa.concat_tables(tables), path, compression="zstd")


def _table(metric: str, scores: Scores) -> pa.Table:
    count = len(scores.values)
    columns = [
        pa.array([metric] * count).dictionary_encode(),
        pa.array(scores.examples, pa.string()),
        np.zeros(count, np.int32) if scores.samples is None else scores.samples,
        scores.values,
        np.ones(count) if scores.weights is None else scores.weights,
    ]
    return pa.table([pa.array(c) if isinstance(c, np.ndarray) else c for c in columns], names=SCHEMA.names).cast(SCHEMA)


def read_scores(path: Path) -> dict[str, Scores]:
    """What `write_scores` wrote, by metric. Raises pyarrow.ArrowException (ValueError) or OSError on a broken file."""
    table = pq.read_table(path, schema=SCHEMA)
    metrics = table.column("metric").cast(pa.string())
    found = {}
    for metric in metrics.unique().to_pylist():
        rows = table.filter(pc.equal(metrics, metric))
        sample, value, weight = (rows.column(name).to_numpy() for name in ("sample", "value", "weight"))
        found[metric] = Scores(rows.column("example").to_pylist(), value, weight, sample)
    return found
