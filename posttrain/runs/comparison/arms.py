"""Runs put into arms: the same config but for the seed. Arms are called by what differs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.runs.comparison.read import Run

# What may differ between the runs of an arm: chance, and what no number of a run depends on.
FREE = ("seed", "output_dir", "tracking", "resume", "log", "data.cache_dir", "data.workers")
FIRST = ("method.name", "model.name", "data.name", "reward", "rollout.name", "hardware.name")  # what names an arm best, if it differs


@dataclass(frozen=True)
class Arm:
    """name: what tells it from the others. differs: all keys in which arms differ, with its values. runs: by seed."""

    name: str
    differs: Mapping[str, Any]
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)


def arms_of(runs: Sequence[Run]) -> list[Arm]:
    """The arms in the order of their first runs. Raises ConfigError for fewer than two, or a seed twice in one."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(settings_of(run.config), sort_keys=True, default=str), []).append(run)
    keys = [settings_of(group[0].config) for group in groups.values()]
    differing = [key for key in dict.fromkeys(key for flat in keys for key in flat) if len({_text(flat, key) for flat in keys}) > 1]
    differs = [{key: flat.get(key) for key in differing} for flat in keys]
    arms = [
        Arm(name, values, tuple(sorted(group, key=lambda run: run.seed)))
        for name, values, group in zip(names_of(differs), differs, groups.values(), strict=True)
    ]
    if problems := [*_too_few(arms), *_twice(arms)]:
        raise ConfigError(problems)
    return arms


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes an arm: every setting by its dotted key, without those that are free."""
    flat = dict(_flat(config, ""))
    return {key: value for key, value in flat.items() if not any(key == free or key.startswith(f"{free}.") for free in FREE)}


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping) or not value:
        yield path, value
        return
    for key, item in value.items():
        yield from _flat(item, f"{path}.{key}" if path else str(key))


def names_of(differs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A short name for each arm: the fewest keys, the telling ones first, that tell all of them apart."""
    keys = list(differs[0]) if differs else []
    ranked = sorted(keys, key=lambda key: (FIRST.index(key) if key in FIRST else len(FIRST), key.endswith("._target_")))
    chosen: list[str] = []
    for key in ranked:
        if len(_labels(differs, chosen)) == len(differs):
            break
        if len(_labels(differs, [*chosen, key])) > len(_labels(differs, chosen)):
            chosen.append(key)
    return [", ".join(f"{key.removesuffix('.name')}={_shown(flat[key])}" for key in chosen) or "all runs" for flat in differs]


def _labels(differs: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(_text(flat, key) for key in keys) for flat in differs}


def _text(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat.get(key), sort_keys=True, default=str)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else "null" if value is None else json.dumps(value, default=str)


def _too_few(arms: Sequence[Arm]) -> Iterator[Problem]:
    if len(arms) < 2:
        runs = sum(len(arm.runs) for arm in arms)
        message = f"{runs} runs with the same config but for the seed are one arm; a comparison needs two"
        yield Problem("runs", message if runs else "names no run", "runs=[A,B,...] with something that differs, or the folder of a sweep")


def _twice(arms: Sequence[Arm]) -> Iterator[Problem]:
    for arm in arms:
        for seed in sorted({seed for seed in arm.seeds if arm.seeds.count(seed) > 1}):
            folders = ", ".join(str(run.folder) for run in arm.runs if run.seed == seed)
            yield Problem("runs", f"seed {seed} of {arm.name} is there more than once: {folders}", "the same run again tells nothing new")
