"""A run's or an artifact's config.yaml as the start of a new run. It is data: no interpolation is followed, nothing is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader

from posttrain.errors import ConfigError, Problem
from posttrain.runs.overrides import Choice

WHOLE = ("experiment", "study", "debug", "method")


def load(path: Path, choices: Sequence[Choice], groups: Callable[[], DictConfig]) -> DictConfig:
    """The file's content with the chosen groups put in place of its own.

    groups: composes the chosen options; called only if there is a choice.

    Raises:
        ConfigError: the file cannot be read, is not a mapping, or a choice would replace more than its own group.
    """
    content = _without_identity(load_config(path), file_of(path))
    problems = [
        Problem(choice.text, "changes more than one group, so it cannot be combined with --config")
        for choice in choices
        if choice.group in WHOLE
    ]
    if problems:
        raise ConfigError(problems)
    try:
        config = OmegaConf.create(escaped(content))
    except RecursionError as error:
        raise ConfigError(Problem(str(path), "is nested too deeply, or contains itself")) from error
    chosen = groups() if choices else OmegaConf.create()
    for key in (choice.group.replace("/", ".") for choice in choices):
        OmegaConf.update(config, key, OmegaConf.select(chosen, key), merge=False, force_add=True)
    return config


def load_config(path: Path) -> dict[str, Any]:
    """The file (or the config.yaml of a folder) as plain data.

    Raises:
        ConfigError: it cannot be read or is not a mapping.
    """
    file = file_of(path)
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=get_yaml_loader())  # a SafeLoader that also reads 1e-4 as a number
    except FileNotFoundError as error:
        raise ConfigError(Problem(str(path), "no such file", "name the config.yaml of a run or of an artifact")) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(Problem(str(path), "is not plain YAML: " + " ".join(str(error).split()))) from error
    except OSError as error:
        raise ConfigError(Problem(str(path), f"cannot be read: {error.strerror or error}")) from error
    if not isinstance(content, dict):
        raise ConfigError(Problem(str(path), "expected a mapping of keys"))
    return content


def file_of(path: Path) -> Path:
    """The config file itself, where its folder may be named instead."""
    return path / "config.yaml" if path.is_dir() else path


def _without_identity(content: dict[str, Any], file: Path) -> dict[str, Any]:
    """The same without the folder and the tracking parent of the run the file lies in: a rerun is a new run."""
    output_dir, tracking = content.get("output_dir"), content.get("tracking")
    if not isinstance(output_dir, str) or Path(output_dir).resolve() != file.parent.resolve():
        return content
    content = content | {"output_dir": None}
    if isinstance(tracking, dict) and "parent_run_id" in tracking:
        content["tracking"] = tracking | {"parent_run_id": None}
    return content


def escaped(value: Any) -> Any:
    """The same data with `${` marked as plain text."""
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escaped(item) for item in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value
