"""What an evaluation suite returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.evaluation.scores import Scores


@dataclass(frozen=True)
class SuiteResult:
    """metrics: name -> value, names safe for MLflow (letters, digits, ``_ - . /``). rows: one JSON-ready dict an example.

    details: what else is worth keeping in the result file (versions, shots, counts of what was left out). scores: of the metrics that are
    means over examples, the single ones.
    """

    metrics: Mapping[str, float]
    rows: Sequence[Mapping[str, Any]]
    details: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Scores] = field(default_factory=dict)
