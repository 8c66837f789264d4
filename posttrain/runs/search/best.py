"""The best trial as an experiment file, which `experiment=best` runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from posttrain.errors import ConfigError
from posttrain.runs import options
from posttrain.runs.compose import compose
from posttrain.runs.config_yaml import as_yaml
from posttrain.runs.files import write_atomic
from posttrain.runs.group_config import choice_lines, initialised, register_resolver
from posttrain.runs.overrides import Choice, Value, parse

NAME = "best"
OWN = ("output_dir", "tracking", "hydra")  # what a run does not share with the trial it repeats


def write_best(lines: Sequence[str], folder: Path, config_dirs: Sequence[str], *, comment: str) -> Path | None:
    """Writes FOLDER/conf/experiment/best.yaml. None where its keys cannot all be said in an experiment file.

    lines: the trial's overrides. comment: its first line.
    """
    home = folder / "conf"
    file = home / "experiment" / f"{NAME}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    folders = options.search_path(config_dirs)
    parsed = parse([line for line in lines if not line.lstrip("+").startswith("output_dir=")], options.groups(folders))
    text = as_yaml(_content(parsed.choices, parsed.values, folders))
    write_atomic(file, f"# @package _global_\n# {comment}\n{text}")
    if _same(lines, home, config_dirs):
        return file
    file.unlink()
    return None


def _content(choices: Sequence[Choice], values: Sequence[Value], folders: Sequence[Path]) -> dict[str, Any]:
    """Choices in the defaults list, an experiment that was chosen first of them; then the values."""
    included = [choice.option for choice in choices if choice.group == "experiment" and choice.option]
    defaults: list[Any] = [*included[-1:]]
    register_resolver()
    search = ",".join(f'"file://{folder}"' for folder in folders[1:])
    fixed = [f"hydra.searchpath=[{search}]"] if search else []
    with initialised(folders):
        lines = choice_lines(choices, fixed)
    defaults += [_default(line) for line in lines if not line.startswith("experiment=")]
    content: dict[str, Any] = {"defaults": [*defaults, "_self_"]}
    for value in values:
        _set(content, value.key.split("."), value.value)
    return content


def _default(line: str) -> dict[str, Any]:
    """An override of a group as an entry of a defaults list."""
    if line.startswith("~"):
        return {f"override /{line[1:]}": None}
    key, _, option = line.partition("=")
    chosen = yaml.safe_load(option)
    return {f"/{key[1:]}": chosen} if key.startswith("+") else {f"override /{key}": chosen}


def _set(content: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    node = content
    for key in keys[:-1]:
        node = node.setdefault(key, {}) if isinstance(node.get(key, {}), dict) else node
    node[keys[-1]] = value


def _same(lines: Sequence[str], home: Path, config_dirs: Sequence[str]) -> bool:
    """Whether the experiment composes to what the overrides do."""
    wanted = compose(list(lines), config_dirs=config_dirs)
    try:
        found = compose([f"experiment={NAME}"], config_dirs=[*config_dirs, str(home)])
    except ConfigError:
        return False
    return {key: value for key, value in wanted.items() if key not in OWN} == {key: value for key, value in found.items() if key not in OWN}
