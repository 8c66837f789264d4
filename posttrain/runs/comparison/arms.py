"""Runs put into arms: the same config but for the seed. Arms are called by what differs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.runs.comparison.read import Run
from posttrain.runs.comparison.settings import same_arm, settings_of, text

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
        groups.setdefault(text(settings_of(run.config)), []).append(run)
    differs = _differing([group[0] for group in groups.values()])
    arms = [_arm(*each) for each in zip(names_of(differs), differs, groups.values(), strict=True)]
    if problems := [*_too_few(arms), *_twice(arms)]:
        raise ConfigError(problems)
    return arms


def named_arms(groups: Mapping[str, Sequence[Run]]) -> list[Arm]:
    """A study's arms, which have names. Raises ConfigError for a seed twice in one, or two that are the same."""
    differs = _differing([group[0] for group in groups.values()])
    arms = [_arm(*each) for each in zip(groups, differs, groups.values(), strict=True)]
    if problems := [*_twice(arms), *_alike(arms)]:
        raise ConfigError(problems)
    return arms


def _arm(name: str, differs: Mapping[str, Any], runs: Sequence[Run]) -> Arm:
    return Arm(name, differs, tuple(sorted(runs, key=lambda run: run.seed)))


def _differing(firsts: Sequence[Run]) -> list[dict[str, Any]]:
    """The settings that are not the same in all arms, of each arm."""
    flats = [settings_of(run.config) for run in firsts]
    keys = [key for key in dict.fromkeys(key for flat in flats for key in flat) if len({text(flat.get(key)) for flat in flats}) > 1]
    return [{key: flat.get(key) for key in keys} for flat in flats]


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
    return {tuple(text(flat.get(key)) for key in keys) for flat in differs}


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


def mixed(arms: Sequence[Arm]) -> Iterator[str]:
    """What a reader must know of arms whose runs differ by more than their seeds."""
    for arm in arms:
        for run in arm.runs[1:]:
            if keys := list(_differing([arm.runs[0], run])[0]):
                more = " and more" if len(keys) > 5 else ""
                yield f"Seeds {arm.runs[0].seed} and {run.seed} of {arm.name} differ in {', '.join(keys[:5])}{more} too."


def _alike(arms: Sequence[Arm]) -> Iterator[Problem]:
    configs = [{run.seed: run.config for run in arm.runs} for arm in arms]
    for place, arm in enumerate(arms):
        known = next((arms[before].name for before in range(place) if same_arm(configs[before], configs[place])), None)
        if known is not None:
            yield Problem("study", f"the arms {known} and {arm.name} have the same settings: they differ in name only")
