"""Whether values of a suite were found by the same settings: an opponent, criteria, a temperature, room for an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain.errors import Problem
from posttrain.runs.comparison.read import MEASURED_AS, Run

# What was read is compared example by example; a seed, and how work is cut up or sent, are no part of what is measured.
FREE = frozenset(("data", "limit", "format", "tasks", "include_path", "seed", "batch_size", "bootstrap_iters"))
FREE_OF_PARTS = frozenset(("url", "key_variable", "concurrency", "timeout", "retries", "pause", "patience", "max_tokens"))


def otherwise_measured(runs: Sequence[Run], metric: str) -> Iterator[Problem]:
    """Runs that were measured by other settings than the first whose settings are known."""
    known = [(run, found) for run in runs if (found := _settings(run, metric))]
    for run, found in known[1:]:
        first, theirs = known[0]
        for name in sorted(found.keys() & theirs.keys()):
            if found[name] != theirs[name]:
                message = f"{metric} was measured with {name}={found[name]}, in {first.folder} with {name}={theirs[name]}"
                yield Problem(f"runs: {run.folder}", message, f"evaluate all alike: posttrain eval run=DIR suite={_suite(metric)}")


def settings_note(runs: Sequence[Run], metric: str) -> list[str]:
    """That nothing is known of the settings, where runs were measured before these were kept."""
    unknown = [run for run in runs if _suite(metric) in run.suites and not _settings(run, metric)]
    if not unknown:
        return []
    return [f"{len(unknown)} of {len(runs)} runs kept no settings of {_suite(metric)}: whether they were measured alike is not known."]


def _suite(metric: str) -> str:
    return metric.split("/")[1] if metric.startswith("eval/") else ""


def _settings(run: Run, metric: str) -> dict[str, Any]:
    """What a run's metric was measured by, dotted; empty where nothing is known."""
    return dict(_flat(run.suites.get(_suite(metric), {}).get(MEASURED_AS, {})))


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if name in FREE:
            continue
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", item) for key, item in value.items() if key not in FREE_OF_PARTS)
        else:
            yield name, value
