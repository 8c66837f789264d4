"""Hydra's part of composing: a config of groups, without any value."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from posttrain.errors import ConfigError, Problem
from posttrain.runs import machine, options
from posttrain.runs.overrides import Choice

PRIMARY = "config"


def from_groups(choices: Sequence[Choice], folders: Sequence[Path]) -> DictConfig:
    """Composes the groups, without any value override; interpolations stay unresolved."""
    return copy.deepcopy(_composed_groups(tuple(choices), tuple(folders), options.state_of(folders)))


@lru_cache(maxsize=64)
def _composed_groups(choices: tuple[Choice, ...], folders: tuple[Path, ...], _state: int) -> DictConfig:
    """Kept, since the runs of a sweep and the stages of its pipelines differ in values far more often than in groups."""
    config = hydra_config(choices, folders)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return config


def hydra_config(choices: Sequence[Choice], folders: Sequence[Path], extra: Sequence[str] = ()) -> DictConfig:
    """The primary config with these group choices, Hydra's own node included. extra: overrides of Hydra's node.

    Raises:
        ConfigError: a YAML file cannot be read or composed.
    """
    register_resolver()
    fixed = [*extra, *([f"hydra.searchpath=[{','.join(quoted(f'file://{folder}') for folder in folders[1:])}]"] if folders[1:] else [])]
    with initialised(folders):
        try:
            return hydra_compose(PRIMARY, overrides=[*fixed, *choice_lines(choices, fixed)], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            text = " ".join(str(error).split("\nConfig search path")[0].split())
            raise ConfigError(Problem("config groups", text)) from error
        except yaml.YAMLError as error:
            raise ConfigError(Problem("config groups", "not YAML: " + " ".join(str(error).split()))) from error


class Files(ConfigRepository):
    """Hydra's configs, each file parsed once: composing goes through the tree of defaults several times, and most of its time was YAML's.

    parsed: results by path, added to here.
    """

    def __init__(self, config_search_path: ConfigSearchPath, parsed: dict[str, Any]) -> None:
        super().__init__(config_search_path)
        self.parsed = parsed

    def load_config(self, config_path: str) -> Any:
        """The config at this path of a group's tree. Who gets it may change it."""
        if config_path not in self.parsed:
            found = super().load_config(config_path)
            if found is None or found.path.startswith("structured:"):  # of a plugin, which may be registered later
                return found
            self.parsed[config_path] = found
        return copy.deepcopy(self.parsed[config_path])

    def __deepcopy__(self, _memo: dict[int, Any]) -> Files:
        copied = copy.copy(self)
        copied.sources = list(self.sources)
        return copied


@lru_cache(maxsize=8)
def _parsed(_folders: tuple[Path, ...], _state: int) -> dict[str, Any]:
    """What is known of these folders as they are."""
    return {}


@contextmanager
def initialised(folders: Sequence[Path]) -> Iterator[None]:
    """Hydra on these folders, the first of which has the primary config."""
    with initialize_config_dir(str(folders[0]), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        loader.repository = Files(loader.get_search_path(), _parsed(tuple(folders), options.state_of(folders)))
        yield


def choice_lines(choices: Sequence[Choice], fixed: Sequence[str] = ()) -> list[str]:
    """Group choices as Hydra overrides. Which nested groups exist depends on the choices above them, so those are settled first."""
    lines: list[str] = []
    for depth in sorted({choice.group.count("/") for choice in choices}):
        keys = _default_keys([*fixed, *lines]) if depth else {name: name for name in _primary_groups()}
        lines += [_choice_line(choice, keys) for choice in choices if choice.group.count("/") == depth and _has_effect(choice, keys)]
    return lines


def _primary_groups() -> list[str]:
    """Groups in the defaults list of the primary config."""
    defaults = yaml.safe_load((options.config_dir() / f"{PRIMARY}.yaml").read_text(encoding="utf-8"))["defaults"]
    return [name for entry in defaults if isinstance(entry, dict) for name in entry]


def _default_keys(lines: Sequence[str]) -> dict[str, str]:
    """Group -> the key Hydra knows it by (`method/loss@method.loss` may be one) in the defaults list of these overrides."""
    loader = GlobalHydra.instance().config_loader()
    found = loader.compute_defaults_list(PRIMARY, list(lines), RunMode.RUN)
    return {key.split("@")[0]: key for key in found.overrides.known_choices}


def _has_effect(choice: Choice, keys: dict[str, str]) -> bool:
    return choice.option is not None or choice.group in keys


def _choice_line(choice: Choice, keys: dict[str, str]) -> str:
    key = keys.get(choice.group)
    if choice.option is None:
        return f"~{key}"
    named = quoted(choice.option) if isinstance(choice.option, str) else f"[{','.join(map(quoted, choice.option))}]"
    return f"{key or '+' + choice.group}={named}"


def quoted(text: str) -> str:
    """A text in Hydra's grammar that is never read as a number, a boolean or a list."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def register_resolver() -> None:
    """Makes `${posttrain.machine:accelerator}` mean what this machine has, `${posttrain.request:gpus,${hardware}}` what a job asks for,
    `${posttrain.times:a,b}` a product, rounded to what a hand would have written."""
    OmegaConf.register_new_resolver("posttrain.machine", lambda fact: machine.facts()[fact], replace=True)
    OmegaConf.register_new_resolver("posttrain.request", machine.request, replace=True)
    OmegaConf.register_new_resolver("posttrain.times", lambda a, b: float(f"{float(a) * float(b):.6g}"), replace=True)
