"""Log-probabilities of examples under the reference policy, on disk: a file for every so many examples of a source, memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from posttrain.types import TokenizedExample

BLOCK = 1024  # examples a file
FILE = "logps.arrow"
SCHEMA = pa.schema([("logps", pa.list_(pa.float32()))])


def trained_places(example: TokenizedExample) -> np.ndarray:
    """Places whose log-probabilities are kept, in order: those with a loss weight."""
    return np.flatnonzero(example.weights)


def write(path: Path, logps: Sequence[np.ndarray]) -> None:
    """One array [trained places] an example."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_batch(pa.record_batch([pa.array(logps, SCHEMA.field("logps").type)], schema=SCHEMA))


@cache
def _open(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and values of a file."""
    with pa.memory_map(str(path)) as source:
        column = pa.ipc.open_stream(source).read_all().column("logps").chunk(0)
    return column.offsets.to_numpy(), column.values.to_numpy()


class ReferenceLogps:
    """The log-probabilities of one source's examples. folders: of block number -> where its file lies."""

    def __init__(self, folders: dict[int, Path]) -> None:
        self.folders = folders

    def of(self, index: int, example: TokenizedExample) -> np.ndarray:
        """float32 [T]: at the trained places of example `index`, 0 elsewhere. Raises KeyError for a block that was not computed."""
        block, place = divmod(index, BLOCK)
        offsets, values = _open(self.folders[block] / FILE)
        row = np.zeros(len(example.ids), np.float32)
        row[trained_places(example)] = values[offsets[place] : offsets[place + 1]]
        return row
