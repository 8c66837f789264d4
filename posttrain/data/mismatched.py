"""Prompts with answers to other prompts: what KTO measures the policy's drift on."""

from __future__ import annotations

import hashlib
import logging
from functools import cached_property

import numpy as np

from posttrain.data.examples import Examples
from posttrain.data.tree import tree_of
from posttrain.types import TokenizedExample

log = logging.getLogger(__name__)


class Mismatched:
    """Example i is the prompt of example i with the answer of the one half a set further on, or of the next one to another prompt.

    Files often hold all desirable answers and then the undesirable ones to the same prompts. For examples of one sequence. The answer
    loses its end where the two together are longer than the set's longest example. Only where all examples have one prompt is an answer
    to the same prompt taken, which a warning tells. tells: whether this process speaks.
    """

    def __init__(self, examples: Examples, *, tells: bool = True) -> None:
        self.examples = examples
        self.tells = tells
        self.longest = int(examples.lengths.max())
        self._digests: dict[int, bytes] = {}

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
        asked, other = self.examples[index], self.examples[self.partner(index)]
        first, begin = answer_start(asked), answer_start(other)
        ids = np.concatenate([asked.ids[:first], other.ids[begin:]])[: self.longest]
        weights = np.concatenate([np.zeros(first, np.float32), other.weights[begin:]])[: self.longest]
        return tree_of([(ids, weights)])

    def length(self, index: int) -> int:
        """Tokens of one example with its other answer."""
        asked, other = self.examples[index], self.examples[self.partner(index)]
        return min(answer_start(asked) + len(other.ids) - answer_start(other), self.longest)

    def partner(self, index: int) -> int:
        """The example whose answer goes with the prompt of `index`."""
        far = index + max(1, len(self) // 2)
        places = (place % len(self) for place in range(far, far + len(self)))
        if self._one_prompt:
            return next(places)
        return next(place for place in places if self._prompt(place) != self._prompt(index))

    @cached_property
    def _one_prompt(self) -> bool:
        """Whether there is no other prompt; looks only as far as the first one that is another."""
        same = all(self._prompt(place) == self._prompt(0) for place in range(len(self)))
        if same and self.tells:
            log.warning(
                "all %d examples have the same prompt: the baseline, which is measured on answers to other prompts, is measured on "
                "other answers to this one",
                len(self),
            )
        return same

    def _prompt(self, index: int) -> bytes:
        """Tells one example's prompt from another's."""
        if index not in self._digests:
            example = self.examples[index]
            self._digests[index] = hashlib.blake2b(example.ids[: answer_start(example)].tobytes(), digest_size=16).digest()
        return self._digests[index]


def answer_start(example: TokenizedExample) -> int:
    """The first trained place of an example of one sequence."""
    return int(np.flatnonzero(example.weights)[0])
