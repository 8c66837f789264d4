"""Several components as one reward: measured where the answers are, combined where all values are known."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.errors import ConfigError, Problem
from posttrain.rewards.base import Isolated, Reward, Unscored, said
from posttrain.rewards.combine import combine
from posttrain.rewards.isolation import Pool
from posttrain.types import Sample

log = logging.getLogger(__name__)
LARGEST = torch.finfo(torch.float32).max  # losses are float32
__all__ = ["Failures", "Measured", "RewardSet", "combine", "guarded"]


@dataclass(frozen=True)
class Failures:
    """Answers that a component could not score. kinds: how many, by kind of reason. examples: a reason of each kind in full."""

    kinds: Mapping[str, int]
    examples: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many answers."""
        return sum(self.kinds.values())


@dataclass(frozen=True)
class Measured:
    """What the components say of n answers of this rank.

    raw: float64 [K, n], in the components' order, NaN where one failed. failures: by component, of those that had any. seconds: by
    component.
    """

    raw: Tensor
    failures: Mapping[str, Failures]
    seconds: Mapping[str, float]


class RewardSet:
    """The components of a reward by name. What a component does to an answer, raise or hang, costs that answer and never the run.

    A context manager: at its end the processes of isolated components end.
    """

    def __init__(self, components: Mapping[str, Reward]) -> None:
        self.components = dict(components)
        self._pools: dict[str, Pool] = {}
        self._told: set[tuple[str, str]] = set()

    def __enter__(self) -> RewardSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def alone(self) -> RewardSet:
        """The components that judge each answer by itself; processes are shared with this set, which ends them."""
        return self._some(compares=False)

    def comparing(self) -> RewardSet:
        """The components that compare the answers to a prompt; as above."""
        return self._some(compares=True)

    def _some(self, *, compares: bool) -> RewardSet:
        some = RewardSet({name: component for name, component in self.components.items() if component.compares == compares})
        some._pools, some._told = self._pools, self._told
        return some

    @property
    def operations(self) -> float:
        """Floating-point operations of the components' models in this process so far."""
        return sum(component.operations for component in self.components.values())

    def start(self, device: str = "cpu") -> None:
        """Load what the components need; device: where the policy is. Raises ConfigError, with all problems, where one cannot start."""
        problems: list[Problem] = []
        for name, component in self.components.items():
            component.place(device)
            try:
                self._pool(name, component).start() if isinstance(component, Isolated) else component.start()
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)

    def measure(self, samples: Sequence[Sample]) -> Measured:
        """Values of these answers, before they are combined. The answers to one prompt must be together on one rank."""
        raw, failures, seconds = [], {}, {}
        for name, component in self.components.items():
            began = time.perf_counter()
            values = self._measure(name, component, samples)
            seconds[name] = time.perf_counter() - began
            raw.append([float(value) for value in values])
            if lost := [value for value in values if math.isnan(value)]:
                failures[name] = _failures(lost)
                self._tell(name, failures[name], len(samples))
        return Measured(torch.tensor(raw, dtype=torch.float64).reshape(len(raw), len(samples)), failures, seconds)

    def close(self) -> None:
        """End the processes of isolated components; measuring starts them anew."""
        while self._pools:
            self._pools.popitem()[1].close()

    def _measure(self, name: str, component: Reward, samples: Sequence[Sample]) -> list[float]:
        if not samples:
            return []
        if not isinstance(component, Isolated):
            return guarded(component, samples)
        try:
            return [checked(value) for value in self._pool(name, component).measure(samples)]
        except BaseException:  # an interrupt: the pool is closed
            self._pools.pop(name)
            raise

    def _pool(self, name: str, component: Isolated) -> Pool:
        if name not in self._pools:
            self._pools[name] = Pool(component)
        return self._pools[name]

    def _tell(self, name: str, failures: Failures, count: int) -> None:
        """Log each kind of failure of a component once."""
        for kind, lost in failures.kinds.items():
            if (name, kind) not in self._told:
                self._told.add((name, kind))
                example = next((reason for reason in failures.examples if reason.startswith(kind)), kind)
                log.warning("reward %s could not score %d of %d answers (%s); they do not count", name, lost, count, example)


def guarded(component: Reward, samples: Sequence[Sample]) -> list[float]:
    """A component's values of answers; where it raises or miscounts, parts are tried again, so that a bad answer costs only itself.

    What compares answers loses the group.
    """
    values = [math.nan] * len(samples)
    pending = [_units(component, samples)]
    while pending:
        units = pending.pop()
        places = [place for unit in units for place in unit]
        found = _attempt(component, [samples[place] for place in places])
        if isinstance(found, Unscored) and len(units) > 1:
            pending += [units[len(units) // 2 :], units[: len(units) // 2]]
            continue
        for place, value in zip(places, [found] * len(places) if isinstance(found, Unscored) else found, strict=True):
            values[place] = value
    return values


def _units(component: Reward, samples: Sequence[Sample]) -> list[list[int]]:
    """Places of the answers that cannot be scored without each other."""
    if not component.compares:
        return [[place] for place in range(len(samples))]
    groups: dict[int, list[int]] = {}
    for place, sample in enumerate(samples):
        groups.setdefault(sample.group, []).append(place)
    return list(groups.values())


def _attempt(component: Reward, samples: Sequence[Sample]) -> list[float] | Unscored:
    """The values, or why there are none."""
    try:
        values = [checked(value) for value in component.measure(samples)]
    except Exception as error:
        return Unscored(said(error))
    return values if len(values) == len(samples) else Unscored(f"wrong count: {len(values)} values for {len(samples)} answers")


def checked(value: float) -> float:
    """A number that float32 holds as it is, anything else as Unscored. Raises TypeError or ValueError for what is no number."""
    if isinstance(value, Unscored):
        return value
    number = float(value)
    if not math.isfinite(number):
        return Unscored(f"not finite: returned {number}")
    return number if abs(number) <= LARGEST else Unscored(f"too large: returned {number}")


def _failures(lost: Sequence[float]) -> Failures:
    reasons = [value.reason for value in lost if isinstance(value, Unscored)]
    kinds = Counter(reason.split(":")[0] for reason in reasons)
    first = {reason.split(":")[0]: reason for reason in reversed(reasons)}
    return Failures(dict(kinds), tuple(first.values()))
