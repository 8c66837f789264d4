"""Which metric decides, and the examples it was measured on: the same for all runs, or it decides nothing.

A short training answers only some of the held-out prompts (evaluation.exact_match.share), spread so that more of them include the fewer
ones. Where all that one run answered was answered by all others, it is on these that they are compared; also where each lacks a few.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np

from posttrain.errors import ConfigError, Problem
from posttrain.evaluation.scores import Scores
from posttrain.runs import suggest
from posttrain.runs.comparison.arms import Arm
from posttrain.runs.comparison.measured_as import otherwise_measured
from posttrain.runs.comparison.quantity import differing, in_words, ranked
from posttrain.runs.comparison.read import MEASURED_AS, Run

NEARLY_ALL = 0.9  # of the examples
NO_QUALITY = re.compile(r"(/before|stderr.*|/n|/tokens)$")


@dataclass(frozen=True)
class Measured:
    """values: of each arm's runs, [S] each. scores: [S, N] each, of the same N examples in the same order; None where some run kept none.

    weights: [N], of the examples. examples: their names. most: examples that some run was measured on, where that is more than N.
    """

    metric: str
    values: tuple[np.ndarray, ...]
    scores: tuple[np.ndarray, ...] | None = None
    weights: np.ndarray | None = None
    examples: tuple[str, ...] = ()
    most: int | None = None


def measured(arms: Sequence[Arm], metric: str | None) -> Measured:
    """The metric, or the first that all runs have. Raises ConfigError where they do not have it, or measured it on other examples."""
    every = [run for arm in arms for run in arm.runs]
    chosen = choose(every, metric)
    arms, most = _in_common(arms, chosen)
    runs = [run for arm in arms for run in arm.runs]
    if problems := [*_other_data(runs, chosen), *otherwise_measured(runs, chosen)]:
        raise ConfigError(problems)
    values = tuple(np.array([run.metrics[chosen] for run in arm.runs]) for arm in arms)
    if any(chosen not in run.scores for run in runs):
        return Measured(chosen, values)
    names, _, weights = by_example(runs[0].scores[chosen])
    if len(names) < 2:
        return Measured(chosen, values)
    scores = tuple(np.stack([by_example(run.scores[chosen])[1] for run in arm.runs]) for arm in arms)
    return Measured(chosen, values, scores, weights, tuple(names.tolist()), most)


def choose(runs: Sequence[Run], metric: str | None) -> str:
    """The metric that decides: the one that was named, else the first by `ranked` that is the same quantity in all runs.

    Raises ConfigError where runs lack it, or where none was named and they have none in common that is the same in all.
    """
    everywhere = set.intersection(*(set(run.metrics) for run in runs))
    useful = sorted(name for name in everywhere if name.startswith(("eval/", "val/")) and not NO_QUALITY.search(name))
    if metric is None:
        apart = {name: differing(runs, name) for name in ranked(useful)}
        found = next((name for name, keys in apart.items() if not keys), None)
        if found is None:
            raise ConfigError(_undecided(apart))
        return found
    lacking = [run for run in runs if metric not in run.metrics]
    if lacking:
        raise ConfigError([_lacks(run, metric, useful) for run in lacking])
    return metric


def _undecided(apart: Mapping[str, Mapping[str, Sequence[str]]]) -> Problem:
    """apart: by metric that might have decided, what makes it another quantity in one run than in another."""
    advice = "evaluate all with the same suite: posttrain eval run=DIR suite=NAME"
    if not apart:
        return Problem("metric", "the runs have no metric in common", advice)
    (first, keys), *others = apart.items()
    more = f"; neither is {' nor '.join(name for name, _ in others[:3])}" if others else ""
    message = f"none was named, and {first} is not the same quantity in all arms ({in_words(keys)}){more}"
    return Problem("metric", message, f"{advice}, then metric=eval/SUITE/NAME; or name one of these all the same, metric={first}")


def _lacks(run: Run, metric: str, useful: Sequence[str]) -> Problem:
    """A metric that is no number is there, and cannot be compared."""
    if (found := run.no_numbers.get(metric)) is not None:
        return Problem(f"metric={metric}", f"it is {found} in {run.folder}", "leave the run out, or see its log for what went wrong")
    return Problem(f"metric={metric}", f"{run.folder} has no such metric", suggest.hint(metric, useful, most=40))


def _in_common(arms: Sequence[Arm], metric: str) -> tuple[Sequence[Arm], int | None]:
    """The arms with the metric of the examples alone that all runs have, if these are all of some run's or nearly all of every run's (a
    judge may leave some unscored); else as they are. And the largest number of examples, where runs differ in them."""
    runs = [run for arm in arms for run in arm.runs]
    if any(metric not in run.scores for run in runs):
        return arms, None
    found = [frozenset(run.scores[metric].examples) for run in runs]
    shared, fewest, most = frozenset.intersection(*found), min(map(len, found)), max(map(len, found))
    if len(shared) == most or len(shared) < (fewest if fewest < NEARLY_ALL * most else NEARLY_ALL * most):
        return arms, None
    return [replace(arm, runs=tuple(_only(run, metric, shared) for run in arm.runs)) for arm in arms], most


def _only(run: Run, metric: str, examples: Set[str]) -> Run:
    """A run whose metric is that of some of its examples."""
    kept = only(run.scores[metric], examples)
    return replace(run, metrics={**run.metrics, metric: kept.mean}, scores={**run.scores, metric: kept})


def only(scores: Scores, examples: Set[str]) -> Scores:
    """The scores of some examples."""
    chosen = np.array([name in examples for name in scores.examples])
    weights, samples = (None if column is None else column[chosen] for column in (scores.weights, scores.samples))
    return Scores([name for name in scores.examples if name in examples], scores.values[chosen], weights, samples)


def by_example(scores: Scores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Names [N], sorted; the mean over the samples of each; the weight of each."""
    names, place = np.unique(np.array(scores.examples), return_inverse=True)
    count = np.bincount(place)
    weights = np.ones(len(place)) if scores.weights is None else scores.weights
    return names, np.bincount(place, scores.values) / count, np.bincount(place, weights) / count


def _other_data(runs: Sequence[Run], metric: str) -> Iterator[Problem]:
    """Runs that were measured on other examples than the first."""
    first = runs[0]
    hint = "evaluate all on the same data: posttrain eval run=DIR suite=NAME data=FILE"
    for run in runs[1:]:
        if metric in first.scores and metric in run.scores:
            mine, _, weights = by_example(run.scores[metric])
            theirs, _, others = by_example(first.scores[metric])
            if set(mine) != set(theirs):
                shared = len(set(mine) & set(theirs))
                message = f"{metric} was measured on {len(mine)} examples, of which {shared} are among the {len(theirs)} of {first.folder}"
                yield Problem(f"runs: {run.folder}", message, hint)
            elif not np.allclose(weights, others):
                yield Problem(f"runs: {run.folder}", f"{metric} weighs the examples otherwise than {first.folder}", hint)
        elif names := other_data(run, first, metric):
            yield Problem(f"runs: {run.folder}", f"{metric} was measured on other data than in {first.folder}: {names} differs", hint)


def other_data(run: Run, first: Run, metric: str) -> str:
    """What is known to differ where examples were not kept; empty where nothing is."""
    suite = metric.split("/")[1] if metric.startswith("eval/") else ""
    if suite in run.suites and suite in first.suites:
        mine, theirs = run.suites[suite], first.suites[suite]
    else:  # held out by the run itself: a source of the same name must have the same contents
        mine, theirs = ({name: side.data[name] for name in run.data.keys() & first.data.keys()} for side in (run, first))
    return ", ".join(sorted(name for name in (mine.keys() | theirs.keys()) - {MEASURED_AS} if mine.get(name) != theirs.get(name)))
