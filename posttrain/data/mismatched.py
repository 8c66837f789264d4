"""Prompts with answers to other prompts: what KTO measures the policy's drift on."""

from __future__ import annotations

import numpy as np

from posttrain.data.examples import Examples
from posttrain.data.tree import tree_of
from posttrain.types import TokenizedExample

TRIES = 16  # examples looked at for another prompt


class Mismatched:
    """Example i is the prompt of example i with the answer of the one half a set further on, or of the next one to another prompt.

    Files often hold all desirable answers and then the undesirable ones to the same prompts. For examples of one sequence. The answer
    loses its end where the two together are longer than the set's longest example.
    """

    def __init__(self, examples: Examples) -> None:
        self.examples = examples
        self.longest = int(examples.lengths.max())

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def lengths(self) -> np.ndarray:
        """Of the examples themselves; with another answer they may be longer, up to `longest`."""
        return self.examples.lengths

    @property
    def targets(self) -> np.ndarray:
        """Of the examples themselves."""
        return self.examples.targets

    def __getitem__(self, index: int) -> TokenizedExample:
        asked = self.examples[index]
        first = answer_start(asked)
        other, begin = self._answer_to_another(index, asked.ids[:first])
        ids = np.concatenate([asked.ids[:first], other.ids[begin:]])[: self.longest]
        weights = np.concatenate([np.zeros(first, np.float32), other.weights[begin:]])[: self.longest]
        return tree_of([(ids, weights)])

    def _answer_to_another(self, index: int, prompt: np.ndarray) -> tuple[TokenizedExample, int]:
        """An example and where its answer begins."""
        far = index + max(1, len(self) // 2)
        for place in range(far, far + TRIES):
            other = self.examples[place % len(self)]
            begin = answer_start(other)
            if not np.array_equal(other.ids[:begin], prompt):
                break
        return other, begin


def answer_start(example: TokenizedExample) -> int:
    """The first trained place of an example of one sequence."""
    return int(np.flatnonzero(example.weights)[0])
