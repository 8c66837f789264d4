"""The registry of strategies. Finding one imports no torch; what a strategy needs is imported when it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from posttrain.discovery import import_modules
from posttrain.runs.strategies import rule

if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy

    from posttrain.models.sharding import Sharding

Config = Mapping[str, Any]
# How long a rank waits for the others. PyTorch's half an hour is less than the leading one may need to write a large artifact to a slow
# disk; a rank that dies is noticed by what has started it.
PATIENCE = timedelta(hours=6)


@dataclass(frozen=True)
class Distribution:
    """strategy: of Lightning's trainer. sharding: what it does with a method's weights. The two know each other where they have to."""

    strategy: Strategy | str
    sharding: Sharding


Make = Callable[[Config], Distribution]
_MADE: dict[str, Make] = {}


def strategy(*names: str) -> Callable[[Make], Make]:
    """Register the decorated function, whole config -> Distribution, under these values of `hardware.strategy`."""

    def add(make: Make) -> Make:
        _MADE.update(dict.fromkeys(names, make))
        return make

    return add


@cache
def strategies() -> Mapping[str, Make]:
    """Every strategy by name; imports the modules of this folder on first use."""
    import_modules("posttrain.runs.strategies")
    return _MADE


def choice_of(config: Config) -> rule.Choice:
    """The strategy that the run of this config gets, and why."""
    return rule.pick(config, _weights)


def distribution_of(config: Config) -> Distribution:
    """How the run of this config is spread over its devices; `auto` is decided by `rule.pick`."""
    return strategies()[choice_of(config).name](config)


def _weights(config: Config) -> rule.Weights:
    from posttrain.models.counts import count_parameters

    counts = count_parameters(config["model"])
    return rule.Weights(counts.total, counts.trainable)
