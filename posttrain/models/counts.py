"""How many weights a model has, of a live model or of a config before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from posttrain.models.architectures import architecture_config, model_config
from posttrain.models.loading import base_where_adapted


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of weights, tied ones counted once. embedding: input embedding, and the output head where it is not tied.
    output: of an output head that is not tied and is trained, which a method without use for it leaves out."""

    total: int
    trainable: int
    embedding: int
    output: int = 0


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """Count the weights of a causal LM, its adapters included; a 4-bit weight counts by its logical shape."""
    parameters = list(model.parameters())
    embedding = {id(weight): weight for weight in _embedding_weights(model)}
    return ParameterCounts(
        total=sum(map(logical_numel, parameters)),
        trainable=sum(logical_numel(parameter) for parameter in parameters if parameter.requires_grad),
        embedding=sum(map(logical_numel, embedding.values())),
        output=sum(logical_numel(weight) for weight in _own_output(model)),
    )


def _own_output(model: nn.Module) -> list[nn.Parameter]:
    first, last = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    return [] if last is None or last.weight is first.weight or not last.weight.requires_grad else [last.weight]


def _embedding_weights(model: nn.Module) -> list[nn.Parameter]:
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[operator]
    return [end.weight for end in ends if end is not None]


def logical_numel(parameter: nn.Parameter) -> int:
    """Number of weights a parameter stands for: bitsandbytes packs two 4-bit weights in a byte and keeps the shape beside."""
    if type(parameter).__name__ == "Params4bit":
        return parameter.quant_state.shape.numel()  # type: ignore[attr-defined]
    return parameter.numel()


def count_parameters(model: Mapping[str, Any]) -> ParameterCounts:
    """Count the weights of a model config on the meta device: no memory, no weights read.

    A named model is counted from the architecture in its YAML, whatever its `weights`; others from the config at `path`.
    Adapters of `model.peft` are counted as the trainable part.
    """
    built = meta_model(model)
    if model.get("peft") is None:
        return parameter_counts(built)
    from posttrain.models.peft import adapt_for_counting

    return parameter_counts(adapt_for_counting(built, model["peft"]))


def meta_model(model: Mapping[str, Any]) -> PreTrainedModel:
    """The model of a config with its weights on the meta device: shapes only."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(_config_of(model), trust_remote_code=bool(model.get("trust_remote_code")))


def hidden_width(model: Mapping[str, Any]) -> int:
    """Width of the states of a model config."""
    return int(_config_of(model).get_text_config().hidden_size)


def _config_of(model: Mapping[str, Any]) -> PreTrainedConfig:
    return architecture_config(model["architecture"]) if model.get("architecture") else model_config(base_where_adapted(model))
