"""Configurations as YAML that every loader here reads alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader


class _Dumper(yaml.SafeDumper):
    """Quotes a text that OmegaConf's loader would read as a number (1e3), as PyYAML does with those that its own loader would."""


for _first, _resolvers in get_yaml_loader().yaml_implicit_resolvers.items():
    for _tag, _pattern in _resolvers:
        _Dumper.add_implicit_resolver(_tag, _pattern, [_first])


def as_yaml(config: Mapping[str, Any]) -> str:
    """Plain data as YAML, keys in their order."""
    return str(yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True))
