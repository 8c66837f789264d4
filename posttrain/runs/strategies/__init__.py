"""How a run is spread over its devices: one file a strategy, which registers itself by the name that `hardware.strategy` gives it."""

from __future__ import annotations

from posttrain.runs.strategies.registry import Distribution, choice_of, distribution_of, strategy

__all__ = ["Distribution", "choice_of", "distribution_of", "strategy"]
