"""What is searched: the keys of a command line that have an interval, a range or several values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from posttrain.errors import ConfigError, Problem
from posttrain.runs.overrides import expand, read

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

OptionsOf = Callable[[str], list[str]]


@dataclass(frozen=True)
class Scale:
    """Numbers from low to high, both among them. step: between neighbours, None for all between. log: drawn on a logarithmic scale."""

    key: str
    low: float
    high: float
    step: float | None
    log: bool
    whole: bool

    @property
    def ends(self) -> tuple[float, ...]:
        """Its smallest and its largest value."""
        return self.low, self.high

    def line(self, value: Any) -> str:
        """The override that sets a value."""
        return f"{self.key}={int(value)}" if self.whole else f"{self.key}={float(value):.12g}"

    def distribution(self) -> BaseDistribution:
        """What Optuna draws from."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


@dataclass(frozen=True)
class Options:
    """One of several overrides of a key."""

    key: str
    lines: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        """All of them: each may be wrong in a way of its own."""
        return self.lines

    def line(self, value: Any) -> str:
        """The override itself."""
        return str(value)

    def distribution(self) -> BaseDistribution:
        """What Optuna draws from."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.lines)


Dimension = Scale | Options


@dataclass(frozen=True)
class Space:
    """dimensions: what is searched. fixed: the other overrides, by key."""

    dimensions: tuple[Dimension, ...]
    fixed: dict[str, str]

    def job(self, params: dict[str, Any]) -> dict[str, str]:
        """The overrides of a trial, by key."""
        return self.fixed | {one.key: one.line(params[one.key]) for one in self.dimensions}

    def corners(self) -> list[dict[str, str]]:
        """Jobs in which each dimension once takes each of its ends, the others their first: what can be checked before anything starts."""
        first = {one.key: one.ends[0] for one in self.dimensions}
        jobs = [self.job(first | {one.key: end}) for one in self.dimensions for end in one.ends]
        return [job for place, job in enumerate(jobs) if job not in jobs[:place]]


def space_of(lines: Sequence[str], options_of: OptionsOf) -> Space:
    """Sorts overrides into what is searched and what is not. Raises ConfigError with everything that is wrong."""
    problems: list[Problem] = []
    dimensions: dict[str, Dimension] = {}
    fixed: dict[str, str] = {}
    for line in lines:
        override = read(line)
        if isinstance(override, Problem):
            problems.append(override)
            continue
        key = override.get_key_element()
        if not override.is_sweep_override():
            fixed[key] = line
            continue
        found = _dimension(override, line, options_of)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            dimensions[key] = found
    if not problems and not dimensions:
        problems.append(
            Problem("hydra/sweeper=optuna", "there is nothing to search", "optimizer.lr=tag(log,interval(1e-5,1e-2)), or a,b,c")
        )
    if problems:
        raise ConfigError(problems)
    return Space(tuple(dimensions.values()), {key: line for key, line in fixed.items() if key not in dimensions})


def _dimension(override: Override, line: str, options_of: OptionsOf) -> Dimension | Problem:
    value, key = override.value(), override.get_key_element()
    if isinstance(value, IntervalSweep | RangeSweep):
        log = "log" in value.tags
        if odd := sorted(value.tags - {"log"}):
            return Problem(line, f"a search knows no tag {odd[0]!r}", "tag(log,...)")
        scale = _interval(value, key, log) if isinstance(value, IntervalSweep) else _range(value, key, log)
        return (
            scale if isinstance(scale, Scale) and not (problem := _wrong(scale, line)) else problem if isinstance(scale, Scale) else scale
        )
    try:
        found = tuple(job[key] for job in expand([line], options_of))
    except ConfigError as error:
        return error.problems[0]
    return Options(key, found) if len(set(found)) > 1 else Problem(line, "has one value, so there is nothing to search", f"{found[0]}")


def _interval(value: IntervalSweep, key: str, log: bool) -> Scale:
    low, high = float(value.start or 0), float(value.end or 0)
    return Scale(key, low, high, None, log, isinstance(value.start, int) and isinstance(value.end, int))


def _range(value: RangeSweep, key: str, log: bool) -> Scale:
    """A range as everywhere in Hydra: without its end."""
    start, stop, step = float(value.start or 0), float(value.stop or 0), float(value.step)
    whole = all(isinstance(number, int) for number in (value.start, value.stop, value.step))
    count = math.ceil(round((stop - start) / step, 9)) if step else 0
    return Scale(key, start, round(start + (count - 1) * step, 12), step, log, whole)


def _wrong(scale: Scale, line: str) -> Problem | None:
    """Why there is nothing to draw from."""
    if not all(map(math.isfinite, scale.ends)):
        return Problem(line, "expected finite numbers")
    if scale.step is not None and scale.step <= 0:
        return Problem(line, "expected a step above 0")
    if not scale.low < scale.high:
        return Problem(line, f"expected the lower end first: {scale.low:g} is not below {scale.high:g}")
    if scale.log and scale.low <= 0:
        return Problem(line, "a logarithmic scale needs numbers above 0")
    if scale.log and scale.step not in (None, 1 if scale.whole else None):
        return Problem(line, "a logarithmic scale has no steps", "use interval(a,b)")
    return None
