"""Whether values of a suite were found by the same settings: an opponent, criteria, a temperature, room for an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.errors import Problem
from posttrain.evaluation.suites.about import START
from posttrain.runs.comparison.read import MEASURED_AS, Run

# What was read is compared example by example; a seed, and how work is cut up or sent, are no part of what is measured.
FREE = frozenset(("data", "limit", "format", "tasks", "include_path", "seed", "batch_size", "bootstrap_iters"))
FREE_OF_PARTS = frozenset(("url", "key_variable", "concurrency", "timeout", "retries", "pause", "patience", "max_tokens"))


@dataclass(frozen=True)
class Opponent:
    """The model that a judge compared with: the same one where its weights are, whatever it is called."""

    weights: str
    model: str = field(compare=False)

    def __str__(self) -> str:
        return f"{self.model} (weights {self.weights})"


def otherwise_measured(runs: Sequence[Run], metric: str) -> Iterator[Problem]:
    """Runs that were measured by other settings than the first that kept the same ones."""
    first: dict[str, tuple[Run, Any]] = {}
    for run in runs:
        for name, mine in sorted(_settings(run, metric).items()):
            other, theirs = first.setdefault(name, (run, mine))
            if mine != theirs:
                message = f"{metric} was measured with {name}={mine}, in {other.folder} with {name}={theirs}"
                yield Problem(f"runs: {run.folder}", message, f"evaluate all alike: {_command(metric, name)}")


def _command(metric: str, name: str) -> str:
    return f"posttrain eval run=DIR suite={_suite(metric)}" + (" against=DIR, one for all" if name == "against" else "")


def settings_note(runs: Sequence[Run], metric: str) -> list[str]:
    """That nothing is known of the settings, where runs were measured before these were kept."""
    unknown = [run for run in runs if _suite(metric) in run.suites and not _settings(run, metric)]
    if not unknown:
        return []
    return [f"{len(unknown)} of {len(runs)} runs kept no settings of {_suite(metric)}: whether they were measured alike is not known."]


def unknown_opponents(runs: Sequence[Run], metric: str) -> list[str]:
    """That runs may have been judged against different models, where some kept only that it was the one that they started from."""
    unknown = [run for run in runs if _measured_as(run, metric).get("against") == START]
    if not unknown:
        return []
    return [
        f"{len(unknown)} of {len(runs)} runs did not keep which model they were compared with ({_suite(metric)}, against={START}): where "
        f"that was not the same one, {metric} is not the same quantity. To know, posttrain eval run=DIR suite={_suite(metric)} for each."
    ]


def _suite(metric: str) -> str:
    return metric.split("/")[1] if metric.startswith("eval/") else ""


def _settings(run: Run, metric: str) -> dict[str, Any]:
    """What a run's metric was measured by, dotted; empty where nothing is known."""
    return dict(_flat(_measured_as(run, metric)))


def _measured_as(run: Run, metric: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = run.suites.get(_suite(metric), {}).get(MEASURED_AS, {})
    return found


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if name in FREE or (name == "against" and value == START):
            continue
        if name == "against" and isinstance(value, Mapping):
            yield name, Opponent(str(value["weights"]), str(value["model"]))
        elif isinstance(value, Mapping):
            yield from ((f"{name}.{key}", item) for key, item in value.items() if key not in FREE_OF_PARTS)
        else:
            yield name, value
