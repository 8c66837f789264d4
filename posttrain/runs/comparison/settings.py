"""What makes an arm: the settings that its runs have in common, whatever their seed. Reads configurations alone, so it costs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Config = Mapping[str, Any]
# What may differ between the runs of an arm: chance, and what no number of a run depends on.
FREE = ("seed", "output_dir", "stages_dir", "tracking", "resume", "log", "data.cache_dir", "data.workers")


def settings_of(config: Config) -> dict[str, Any]:
    """Every setting by its dotted key, without those that are free; a pipeline's stages by their names. A stage's seed counts as the
    recipe has it: `+1` = one more than the pipeline's, a number = its own."""
    found = dict(_settings(config))
    for name, stage in _stages(config).items():
        found |= {f"stages.{name}.{key}": value for key, value in _settings(stage.get("config") or {})}
        own = {key: stage.get(key) for key in ("inputs", "share", "seed")}
        found |= {f"stages.{name}.{key}": value for key, value in flat(own, "")}
    return found


def same_arm(one: Mapping[int, Config], other: Mapping[int, Config]) -> bool:
    """Whether two arms, each a config by seed, train the same wherever they have a seed in common."""
    common = one.keys() & other.keys()
    if not common:
        return text(settings_of(next(iter(one.values())))) == text(settings_of(next(iter(other.values()))))
    return all(_computed(one[seed]) == _computed(other[seed]) for seed in common)


def _computed(config: Config) -> str:
    """All that a run of a known seed is made of."""
    seeds = {f"stages.{name}.seed": (stage.get("config") or {}).get("seed") for name, stage in _stages(config).items()}
    return text({**settings_of(config), **seeds})


def text(value: Any) -> str:
    """A value as it is compared: 1 is not true, and the order of keys does not count."""
    return json.dumps(value, sort_keys=True, default=str)


def _stages(config: Config) -> dict[str, Config]:
    return {stage["name"]: stage for stage in config.get("stages") or ()}


def _settings(config: Config) -> Iterator[tuple[str, Any]]:
    for key, value in flat({key: value for key, value in config.items() if key != "stages"}, ""):
        if not any(key == free or key.startswith(f"{free}.") for free in FREE):
            yield key, value


def flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The values below `path` by their dotted keys; an empty mapping is a value."""
    if not isinstance(value, Mapping) or not value:
        yield path, value
        return
    for key, item in value.items():
        yield from flat(item, f"{path}.{key}" if path else str(key))
