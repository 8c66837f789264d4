"""Model configurations from plain dicts: every architecture transformers has, with unknown fields refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from posttrain.errors import ConfigError, Problem
from posttrain.models.hub import hub_errors, is_local, local_or_id, source_options

# Decided elsewhere; as an architecture field they would be silently overruled.
DECIDED_ELSEWHERE = {"dtype": "precision", "torch_dtype": "precision", "attn_implementation": "model.attention"}
# Names of published config.json files that a config with `rope_parameters` converts.
ROPE_ALIASES = frozenset({"rope_theta", "rope_scaling"})


def architecture_config(architecture: Mapping[str, Any]) -> PreTrainedConfig:
    """The transformers config of ``{model_type: qwen3, hidden_size: 128, ...}``.

    Raises ConfigError naming every unknown model type or field with its nearest valid name, and every value the config class refuses.
    """
    model_type = architecture.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        message = f"{model_type!r} is not a causal language model of transformers" if model_type else "is missing"
        raise ConfigError(Problem("model.architecture.model_type", message, _nearest(str(model_type), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)))
    config_class = CONFIG_MAPPING[model_type]
    values = {name: value for name, value in architecture.items() if name != "model_type"}
    if problems := unknown_fields(config_class, values):
        raise ConfigError(problems)
    try:
        return config_class(**values)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(Problem("model.architecture", f"{config_class.__name__} refuses it: {_one_line(error)}")) from error


def unknown_fields(config_class: type[PreTrainedConfig], values: Mapping[str, Any]) -> list[Problem]:
    """One problem for each name in `values` that the config class does not have."""
    known = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    if "rope_parameters" in known:
        known |= ROPE_ALIASES
    known -= set(DECIDED_ELSEWHERE)
    return [_unknown(name, config_class, known) for name in values if name not in known]


def _unknown(name: str, config_class: type[PreTrainedConfig], known: set[str]) -> Problem:
    where = f"model.architecture.{name}"
    if name in DECIDED_ELSEWHERE:
        return Problem(where, "is not part of the architecture", f"use {DECIDED_ELSEWHERE[name]}")
    return Problem(where, f"{config_class.__name__} has no such field", _nearest(name, known))


def _nearest(name: str, known: Any) -> str:
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def model_config(model: Mapping[str, Any]) -> PreTrainedConfig:
    """The transformers config a model dict stands for, without loading weights.

    Random weights: `architecture`, else the config in the local folder `path`. Pretrained: the config at `path`.
    """
    path = model.get("path")
    if model["weights"] == "random" and model.get("architecture"):
        return architecture_config(model["architecture"])
    if model["weights"] == "random" and not is_local(path):
        message = "random weights need an architecture, or a local model.path that holds a config.json"
        raise ConfigError(Problem("model.architecture", message))
    if path is None:
        raise ConfigError(Problem("model.path", "is needed for pretrained weights", "model.path=DIR_OR_HUB_ID, or model.weights=random"))
    options = source_options(path, model.get("revision"))
    with hub_errors(path):
        return AutoConfig.from_pretrained(local_or_id(path), trust_remote_code=bool(model.get("trust_remote_code")), **options)
