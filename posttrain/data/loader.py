"""Plain iterables of micro-batches that know where they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np

from posttrain.data.examples import Examples
from posttrain.data.held_out import spread
from posttrain.data.mismatched import Mismatched
from posttrain.data.plan import StepPlan, balance, first_fit
from posttrain.data.stretch import WHOLE, stretch_of
from posttrain.data.tree import collate, ghost, nothing
from posttrain.data.work import Counted, step_work
from posttrain.types import StepShare, Stretch, TokenTree, Work


class TreeLoader:
    """A rank's micro-batches of a whole run, in order; one pass. Resumes at any optimizer step without replaying data.

    rank: among those that the plan splits steps over. stretch: what of each row is this process's.
    """

    def __init__(self, examples: Counted, plan: StepPlan, *, rank: int = 0, stretch: Stretch = WHOLE) -> None:
        self.examples = examples
        self.plan = plan
        self.rank = rank
        self.stretch = stretch
        self.given = 0

    def __len__(self) -> int:
        return self.plan.steps * self.plan.micro_batches

    def __iter__(self) -> Iterator[TokenTree]:
        first, skip = divmod(self.given, self.plan.micro_batches)
        for number in range(first, self.plan.steps):
            step = self.plan.step(number)
            mine = step.split[self.rank]
            empty = self.plan.micro_batches - len(mine)
            for place in range(skip, self.plan.micro_batches):
                self.given += 1
                if place < empty:
                    yield nothing(step.share)
                else:
                    yield stretch_of(micro_batch(self.examples, mine[place - empty], step.share), self.stretch)
            skip = 0

    @property
    def micro_batches(self) -> int:
        """Of this rank, in each optimizer step, the empty ones included, which come first."""
        return self.plan.micro_batches

    @property
    def parts(self) -> int:
        """Micro-batches of a step over all ranks, or stretches of them."""
        return self.plan.ranks * self.plan.micro_batches * self.stretch.size

    def step_trees(self, step: int, *, mismatched: bool = False) -> Iterator[TokenTree]:
        """This rank's micro-batches of one optimizer step that hold something; mismatched: see `posttrain.data.mismatched`."""
        planned = self.plan.step(step)
        if mismatched:
            ranks = [[index for indices in micro_batches for index in indices] for micro_batches in planned.split]
            return self._mismatched(ranks, planned.share)
        trees = (micro_batch(self.examples, indices, planned.share) for indices in planned.split[self.rank])
        return (stretch_of(tree, self.stretch) for tree in trees)

    def work(self, step: int) -> Work:
        """What an optimizer step computes on, over all ranks."""
        return step_work(self.examples, self.plan, step)

    def notes(self, step: int) -> Mapping[str, float]:
        """Nothing is reported of a step but what the method measures."""
        return {}

    def pop_seconds(self) -> Mapping[str, float]:
        """Nothing that takes its time happens between steps."""
        return {}

    def close(self) -> None:
        """Nothing is held that must be given back."""

    @cached_property
    def _elsewhere(self) -> Mismatched:
        return Mismatched(self.examples, tells=self.rank == 0)

    def _mismatched(self, ranks: Sequence[Sequence[int]], share: StepShare) -> Iterator[TokenTree]:
        """Split anew: an answer to another prompt has another length. As many on every rank. ranks: the examples of each."""
        lengths = [np.array([self._elsewhere.length(index) for index in indices], np.int64) for indices in ranks]
        most = max(self.plan.max_tokens, *(int(some.max(initial=0)) for some in lengths))
        bins = max(first_fit(some, most) for some in lengths)
        mine = ranks[self.rank]
        for group in balance(lengths[self.rank], bins, most):
            yield stretch_of(micro_batch(self._elsewhere, [mine[place] for place in group], share), self.stretch)

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


def micro_batch(examples: Examples, indices: Sequence[int], share: StepShare) -> TokenTree:
    """The token tree of some examples; a ghost where there are none."""
    if not indices:
        return collate([ghost(examples[0])], share)
    return collate([examples[index] for index in indices], share)


class EvaluationBatches:
    """A rank's share of `limit` examples that are spread over all, each once; as many micro-batches on every rank, made when asked for.

    An example that is longer than max_tokens is a micro-batch of its own. A tree's share states the totals over all ranks. stretch: what
    of each row is this process's.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        max_tokens: int,
        rank: int = 0,
        ranks: int = 1,
        limit: int | None = None,
        stretch: Stretch = WHOLE,
    ) -> None:
        chosen = np.array(spread(range(len(examples)), limit), np.int64)
        sizes = np.minimum(examples.lengths[chosen], max_tokens)
        bins = -(-first_fit(sizes, max_tokens) // ranks) * ranks
        self.examples = examples
        self.stretch = stretch
        self.groups = [[int(chosen[place]) for place in group] for group in balance(sizes, bins, max_tokens)[rank::ranks]]
        self.share = StepShare(float(examples.targets[chosen].sum(dtype=np.float64)), len(chosen), bins)

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[TokenTree]:
        return (stretch_of(micro_batch(self.examples, group, self.share), self.stretch) for group in self.groups)
