"""A rollout as the steps see it, and as a checkpoint holds it: plain tensors, numbers and texts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from posttrain.types import Part, TokenizedExample, Work

ARRAYS = ("ids", "weights", "segment_lengths", "segment_parents", "marks", "values")


@dataclass(frozen=True)
class Held:
    """number: of the rollout in the run. parts: its trees, annotated. groups: how many groups it has. spare: what a rank without work runs.

    metrics: what its making showed. forward: what was computed on without a backward pass.
    """

    number: int
    parts: list[Part]
    groups: int
    spare: TokenizedExample
    metrics: dict[str, float]
    forward: Work

    def to_state(self) -> dict[str, Any]:
        """Everything the remaining steps read."""
        return {
            "number": self.number,
            "groups": self.groups,
            "metrics": dict(self.metrics),
            "forward": asdict(self.forward),
            "spare": _tree_state(self.spare),
            "parts": [{"group": part.group, "answers": list(part.answers), "tree": _tree_state(part.tree)} for part in self.parts],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Held:
        """What `to_state` was called on."""
        parts = [Part(part["group"], tuple(part["answers"]), _tree(part["tree"])) for part in state["parts"]]
        return cls(state["number"], parts, state["groups"], _tree(state["spare"]), state["metrics"], Work(**state["forward"]))


def _tree_state(tree: TokenizedExample) -> dict[str, Any]:
    known = {} if tree.reference is None else {"reference": _tensor(tree.reference)}
    columns = {name: _tensor(column) for name, column in tree.columns.items()}
    return {**{name: _tensor(getattr(tree, name)) for name in ARRAYS}, **known, "columns": columns}


def _tree(state: dict[str, Any]) -> TokenizedExample:
    ids, weights, lengths, parents, marks, values = (state[name].numpy() for name in ARRAYS)
    reference = state["reference"].numpy() if "reference" in state else None
    columns = {name: column.numpy() for name, column in state["columns"].items()}
    return TokenizedExample(ids, weights, lengths, parents, marks, values, reference, columns)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
