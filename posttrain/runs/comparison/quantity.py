"""What a metric is, where runs may call different quantities by one name: a loss is its method's own, a reward is made of its components.

A metric decides by default only where it is the same quantity in all arms. Which keys make it what it is, is known by its name; what is
not known is taken to depend on the whole method.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from posttrain.runs.comparison.arms import settings_of
from posttrain.runs.comparison.measured_as import FREE_OF_PARTS, unknown_opponents
from posttrain.runs.comparison.read import Run

# The first that all runs have, and that is the same in all, decides. Of several that fit, the first by name.
PREFERRED = (
    r"eval/exact_match", r"val/reward", r"val/loss", r"val/rewards/accuracy", r"val/accuracy", r"val/perplexity",
    r"eval/[^/]+/(win_rate|maj_at_\d+|pass_at_1|exact_match|accuracy|reward|loss)", r"eval/.+/(acc|exact_match|f1|pass@1).*", r"eval/.+",
)  # fmt: skip
# Of an evaluation, and not how good it was.
BESIDE = re.compile(r"/(length|against_length|unscored|consistent|first|wins|ties|losses|answered)$")
# Of a method, without effect on what it measures.
OF_TRAINING = ("method.neftune_alpha", "method.reference", "method.reference_cache")
NO_MEASURE = frozenset((*FREE_OF_PARTS, "workers", "memory_gb", "device", "normalise", "clip", "difficulty"))  # of a reward's component
Settings = Mapping[str, Any]


def ranked(names: Sequence[str]) -> list[str]:
    """Those that may decide by default, the preferred first."""
    places = {name: next((k for k, like in enumerate(PREFERRED) if re.fullmatch(like, name)), None) for name in names}
    fitting = {name: place for name, place in places.items() if place is not None and not BESIDE.search(name)}
    return sorted(fitting, key=lambda name: (fitting[name], name))


def differing(runs: Sequence[Run], metric: str) -> dict[str, list[str]]:
    """The settings in which runs differ that make the metric what it is, each with its values; empty where it is one quantity."""
    each = [quantity(run, metric) for run in runs]
    keys = dict.fromkeys(("method.name", *(key for found in each for key in found)))
    values = {key: list(dict.fromkeys(_text(found.get(key)) for found in each)) for key in keys}
    return {key: found for key, found in values.items() if len(found) > 1}


def quantity(run: Run, metric: str) -> Settings:
    """All that makes a run's metric what it is."""
    return next((dict(made_of(run, metric)) for like, made_of in MADE_OF if re.match(like, metric)), {})


def _by_method(run: Run, metric: str) -> Iterator[tuple[str, Any]]:
    config = settings_of(run.parts[-1].config)
    yield from ((key, value) for key, value in config.items() if key.startswith("method.") and key not in OF_TRAINING)
    yield from _reference(run, metric)


def _by_kind(run: Run, metric: str) -> Iterator[tuple[str, Any]]:
    """Shares of pairs that are told apart, whatever the loss weighs them by."""
    method = run.parts[-1].config["method"]
    yield from ((f"method.{key}", method.get(key)) for key in ("name", "tail_weight"))
    yield from _reference(run, metric)


def _reference(run: Run, metric: str) -> Iterator[tuple[str, Any]]:
    """What a method with a reference measures against: the model that the run, or the last stage of a pipeline, starts from."""
    if "reference" in run.parts[-1].config["method"]:
        yield "the reference", _start(run)


def _start(run: Run) -> Settings:
    """What a run, or the last stage of a pipeline, starts from: a model, or all that the stages before it are made by."""
    last = run.parts[-1].config
    names = [stage["name"] for stage in run.config.get("stages") or ()][:-1]
    before = {key: value for key, value in settings_of(run.config).items() if any(key.startswith(f"stages.{name}.") for name in names)}
    begins = {key: last["model"].get(key) for key in ("name", "path", "weights", "revision")} if not names else before
    return {"model": begins, "entering": last.get("entering")}


def _by_reward(run: Run, metric: str) -> Iterator[tuple[str, Any]]:
    """Components with a weight of 0 are only watched."""
    for name, component in (run.parts[-1].config.get("reward") or {}).items():
        if component.get("weight", 1):
            yield from _component(name, component)


def _by_component(run: Run, metric: str) -> Iterator[tuple[str, Any]]:
    """One of a reward's components, whatever it weighs in the sum."""
    name = metric.rpartition("/")[2]
    found = _component(name, (run.parts[-1].config.get("reward") or {}).get(name))
    yield from ((key, value) for key, value in found if key != f"reward.{name}.weight")


def _by_opponent(run: Run, metric: str) -> Iterator[tuple[str, Any]]:
    """How often a judge prefers answers to those of the model that the run started from."""
    yield from _by_component(run, metric)
    yield "the opponent", _start(run)


def _component(name: str, component: Any) -> Iterator[tuple[str, Any]]:
    flat = settings_of({"reward": {name: component}})
    yield from ((key, value) for key, value in flat.items() if key.rpartition(".")[2] not in NO_MEASURE)


def _by_room(run: Run, metric: str) -> Iterator[tuple[str, Any]]:
    """What was asked for of answers; where answers are sampled for training, measured ones are as long as those."""
    config = run.parts[-1].config
    if config.get("rollout") is None:
        yield "evaluation.exact_match.max_new_tokens", ((config.get("evaluation") or {}).get("exact_match") or {}).get("max_new_tokens")


def _by_nothing(run: Run, metric: str) -> Iterator[tuple[str, Any]]:
    """The same wherever it was measured on the same data, which is seen elsewhere."""
    yield from ()


MADE_OF: tuple[tuple[str, Callable[[Run, str], Iterator[tuple[str, Any]]]], ...] = (
    (r"eval/exact_match$", _by_room), (r"eval/", _by_nothing),
    (r"(val/reward|val/unscored|reward/mean|answers/unscored)$", _by_reward), (r"((val/)?reward|val/unscored)/", _by_component),
    (r"val/win_rate/", _by_opponent), (r"(val/)?(rewards/)?accuracy$", _by_kind),
    (r"(val/)?(perplexity|token_accuracy)$", _by_nothing), (r"", _by_method),
)  # fmt: skip


def cautions(runs: Sequence[Run], metric: str) -> list[str]:
    """What must stand beside a verdict: that the metric is, or may be, another quantity in one arm than in another."""
    found = differing(runs, metric)
    words = f"{metric} is not the same quantity in all arms ({in_words(found)}), so the verdict compares different things: "
    told = [f"{words}decide by a metric that is the same, metric=NAME."] if found else []
    return [*told, *unknown_opponents(runs, metric)]


def in_words(found: Mapping[str, Sequence[str]], most: int = 3) -> str:
    """The settings that differ, a few of them with their values."""
    words = [f"{key} is {' or '.join(values)}" if len(", ".join(values)) < 80 else f"{key} differs" for key, values in found.items()]
    return ", ".join([*words[:most], *([f"and {len(words) - most} more"] if len(words) > most else [])])


def _text(value: Any) -> str:
    return "null" if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
