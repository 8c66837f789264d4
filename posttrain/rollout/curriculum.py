"""Which prompts are worth asking: by how often the policy got them right when it was last asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from posttrain.types import Group

FORGOTTEN = 2  # passes over the data after which a measurement no longer counts


@dataclass
class Curriculum:
    """Skips prompts whose measured pass rate lies outside low..high, until that is some passes over the data ago.

    The pass rate of a prompt is the share of its answers with a reward above 0. Prompts never asked are always worth asking. size: prompts
    of the data. known: prompt number -> (pass rate, place in the run's order where it was measured).
    """

    size: int
    low: float = 0.0
    high: float = 1.0
    known: dict[int, tuple[float, int]] = field(default_factory=dict)

    def places(self, cursor: int, count: int, number_at: Callable[[int], int]) -> Iterator[int]:
        """The next `count` places from `cursor` whose prompts are worth asking; any, where a whole pass over the data has too few."""
        place, end = cursor, cursor + self.size
        while count:
            if place >= end or self.wants(number_at(place), place):
                yield place
                count -= 1
            place += 1

    def wants(self, number: int, place: int) -> bool:
        """Whether prompt `number` is worth asking at a place of the run's order."""
        rate, measured = self.known.get(number, (self.low, place))
        return self.low <= rate <= self.high or place - measured > FORGOTTEN * self.size

    def learn(self, groups: Sequence[Group], rewards: Tensor, places: Sequence[int]) -> None:
        """Take in rewards [P, G] of the answers to P prompts, before they are normalised. places: of the prompts in the run's order."""
        if (self.low, self.high) == (0.0, 1.0):
            return
        for group, answers, place in zip(groups, rewards, places, strict=True):
            scored = answers[~answers.isnan()]
            if len(scored):
                self.known[group.example] = (float((scored > 0).double().mean()), place)

    def state_dict(self) -> dict[str, Any]:
        """What was measured, as numbers."""
        rates, places = [rate for rate, _ in self.known.values()], [place for _, place in self.known.values()]
        return {"numbers": list(self.known), "rates": rates, "places": places}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.known = {n: (rate, place) for n, rate, place in zip(state["numbers"], state["rates"], state["places"], strict=True)}
