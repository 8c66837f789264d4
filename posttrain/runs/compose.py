"""From overrides to one plain, resolved configuration, collecting everything that is wrong on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from posttrain.errors import ConfigError, Problem
from posttrain.runs import base_config, options, suggest
from posttrain.runs.group_config import from_groups, hydra_config
from posttrain.runs.overrides import STUDY, Choice, Parsed, Value, of_many_runs, parse
from posttrain.runs.validate import accepts, known_keys, with_defaults

NO_OTHER_DATA = (Value("data.train", None, "set", "debug=true"), Value("data.sources", None, "set", "debug=true"))


@dataclass
class Composed:
    """What could be composed. broken: keys and groups whose own problem makes further remarks about them noise."""

    config: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)


def compose(overrides: Sequence[str], *, config_dirs: Sequence[str | Path] = (), base: Path | None = None) -> dict[str, Any]:
    """The resolved configuration as plain dicts, lists and values.

    overrides: `key=value` and `group=option`, as on the command line.
    config_dirs: folders with the user's own groups, searched after the built-in ones.
    base: a run's or an artifact's config.yaml; the overrides apply on top of it instead of the built-in defaults.

    Raises:
        ConfigError: with every problem of the composition (`runs.check` finds those of the values).
    """
    composed = compose_partly(overrides, config_dirs=config_dirs, base=base)
    if composed.problems:
        raise ConfigError(composed.problems)
    return composed.config


def compose_partly(
    overrides: Sequence[str], *, config_dirs: Sequence[str | Path] = (), base: Path | None = None, stage: bool = False
) -> Composed:
    """Like `compose`, but drops what is wrong, composes the rest and reports both. stage: of a pipeline, so it is none itself."""
    folders = options.search_path(config_dirs)
    groups = options.groups(folders)
    parsed = parse(overrides, groups)
    result = Composed({}, list(parsed.problems))
    result.problems += of_many_runs(parsed)
    parsed.choices = [choice for choice in parsed.choices if choice.group != STUDY]
    choices = _checked_choices(parsed, folders, result)
    if base is None and _wants_small_data(choices):
        choices, parsed.values = [*choices, _small_data(choices, folders)], [*NO_OTHER_DATA, *parsed.values]
    config = from_groups(choices, folders) if base is None else base_config.load(base, choices, lambda: from_groups(choices, folders))
    if stage:
        config["stages"] = None
    if config.get("stages") is not None:
        from posttrain.runs.pipeline.compose import compose_pipeline

        content = cast(dict[str, Any], OmegaConf.to_container(config, resolve=base is not None))
        return compose_pipeline(overrides, content["stages"], content, config_dirs=config_dirs)
    result.problems += [
        _no_stages(value, config) for value in parsed.values if value.key.split(".")[0] == "stages" and value.value is not None
    ]
    parsed.values = [value for value in parsed.values if value.key.split(".")[0] != "stages"]
    _apply_values(parsed.values, config, groups, result)
    result.config = _resolved(config, result)
    return result


def compose_stage_again(config: Mapping[str, Any], overrides: Sequence[str], groups: Sequence[str]) -> Composed:
    """A stage's complete config with further values; its groups stay as they are."""
    parsed = parse(overrides, groups)
    result = Composed({}, list(parsed.problems))
    advice = "set its keys one by one, or compose the pipeline anew"
    result.problems += [Problem(choice.text, "a stage of a finished config keeps its groups", advice) for choice in parsed.choices]
    changed = OmegaConf.create(base_config.escaped(dict(config)))
    _apply_values(parsed.values, changed, groups, result)
    result.config = _resolved(changed, result)
    return result


def _no_stages(value: Value, config: DictConfig) -> Problem:
    name = OmegaConf.select(config, "method.name")
    return Problem(value.text, f"method={name} is no pipeline, so it has no stages", "method=staged; posttrain list method shows others")


def _wants_small_data(choices: Sequence[Choice]) -> bool:
    """Whether `debug=true` decides about the data: an experiment's are replaced, the user's own are not."""
    return any(choice.group == "debug" and choice.option for choice in choices) and all(choice.group != "data" for choice in choices)


def _small_data(choices: Sequence[Choice], folders: Sequence[Path]) -> Choice:
    """The data a method brings by itself, which is generated and small."""
    method = hydra_config(choices, folders).hydra.runtime.choices.method
    only_method = hydra_config([Choice("method", method, f"method={method}")], folders)
    return Choice("data", only_method.hydra.runtime.choices.data, "debug=true")


def _checked_choices(parsed: Parsed, folders: Sequence[Path], result: Composed) -> list[Choice]:
    """The choices whose option exists; the others become problems."""
    good = []
    for choice in parsed.choices:
        names = [option.name for option in options.options(folders, choice.group)]
        missing = [name for name in choice.names if name not in names]
        if not missing:
            good.append(choice)
        elif choice.group != "debug" or choice.option != "false":
            result.problems += [
                Problem(choice.text, f"{choice.group} has no option '{name}'", suggest.hint(name, names, most=40)) for name in missing
            ]
            result.broken.add(choice.group.replace("/", "."))
    return good


def _apply_values(values: Sequence[Value], config: DictConfig, groups: Sequence[str], result: Composed) -> None:
    for value in values:
        problem = _apply(value, config, groups)
        if problem is not None and not is_below(value.key, result.broken):
            result.problems.append(problem)
            result.broken.add(value.key)


def _apply(value: Value, config: DictConfig, groups: Sequence[str]) -> Problem | None:
    """Sets or deletes one key of the config in place; the problem if that is not possible."""
    plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))
    if value.verb == "delete":
        return _delete(value, config)
    if value.verb == "set" and not _present(plain, value.key) and not accepts(plain, value.key):
        return _unknown(value, plain, groups)
    try:
        if isinstance(value.value, list) and _present(plain, value.key) and isinstance(_at(plain, value.key), dict):
            return Problem(value.text, f"{value.key} is a group of keys, not a list", f"set one of its keys: {value.key}.KEY=...")
        OmegaConf.update(config, value.key, value.value, merge=True, force_add=True)
    except OmegaConfBaseException as error:
        return Problem(value.text, str(error).splitlines()[0])
    return None


def _delete(value: Value, config: DictConfig) -> Problem | None:
    parent, _, last = value.key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if not isinstance(node, DictConfig) or last not in node:
        return Problem(value.text, "there is no such key to delete")
    del node[last]
    return None


def _at(plain: dict[str, Any], dotted: str) -> Any:
    """The value at a dotted key. Raises LookupError if there is none."""
    node: Any = plain
    for key in dotted.split("."):
        if isinstance(node, list) and key.isdigit():
            node = node[int(key)]
        elif isinstance(node, dict):
            node = node[key]
        else:
            raise LookupError(dotted)
    return node


def _present(plain: dict[str, Any], dotted: str) -> bool:
    try:
        _at(plain, dotted)
    except LookupError:
        return False
    return True


def _unknown(value: Value, plain: dict[str, Any], groups: Sequence[str]) -> Problem:
    """Why a key cannot be set, and the nearest one that can."""
    parent = value.key.rpartition(".")[0]
    group = parent.replace(".", "/")
    if parent and _present(plain, parent) and _at(plain, parent) is None:
        advice = f"choose one first: posttrain list {group}" if group in groups else f"set {parent} first"
        return Problem(value.text, f"{parent} is null, so it has no keys", advice)
    known = known_keys(plain)
    near = suggest.nearest(value.key, [*known, *groups])
    siblings = [key for key in known if key.rpartition(".")[0] == parent]
    if near is None and not siblings and parent in known:
        above = parent.rpartition(".")[0]
        beside = [key for key in known if key.rpartition(".")[0] == above]
        return Problem(value.text, f"{parent} has no keys", suggest.hint(value.key, beside))
    return Problem(value.text, f"there is no key '{value.key}'", f"did you mean {near}?" if near else suggest.hint(value.key, siblings))


def is_below(dotted: str, prefixes: set[str]) -> bool:
    """Whether a key is one of the prefixes or lies below one."""
    return any(dotted == prefix or dotted.startswith(f"{prefix}.") for prefix in prefixes)


def _resolved(config: DictConfig, result: Composed) -> dict[str, Any]:
    """The config as plain data; interpolations that fail become problems and their values null."""
    for dotted in _leaves(OmegaConf.to_container(config, resolve=False), ""):
        try:
            OmegaConf.select(config, dotted)
        except OmegaConfBaseException as error:
            result.problems.append(Problem(dotted, f"cannot be resolved: {str(error).splitlines()[0]}"))
            result.broken.add(dotted)
            OmegaConf.update(config, dotted, None)
    return with_defaults(cast(dict[str, Any], OmegaConf.to_container(config, resolve=True)))


def _leaves(node: Any, path: str) -> list[str]:
    """Dotted names of the values that are interpolations."""
    if isinstance(node, dict):
        return [leaf for key, item in node.items() for leaf in _leaves(item, f"{path}.{key}" if path else str(key))]
    if isinstance(node, list):
        return [leaf for index, item in enumerate(node) for leaf in _leaves(item, f"{path}.{index}")]
    return [path] if isinstance(node, str) and "${" in node else []
