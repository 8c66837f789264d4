"""Bytes of a model's weights, quantised ones by what the quantised layers keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from posttrain.models.quantisation import block_linears
from posttrain.runs.planning.shapes import Weights

WIDTH = {"float32": 4, "bf16": 4, "bf16_true": 2}  # bytes of a weight
NF4_BLOCK, NF4_GROUP = 64, 256  # weights that share a scale, scales that share one once more
SMALL = 4096  # elements below which 8-bit optimizers keep 32 bits


def weights_of(built: nn.Module, inner: PreTrainedModel, peft: Mapping[str, Any] | None, precision: str) -> Weights:
    """Of a model (with its adapters) on the meta device."""
    element = WIDTH[precision]
    packed = _packed(inner, peft)
    trained = [(name, p) for name, p in built.named_parameters() if p.requires_grad]
    frozen = [(name, p) for name, p in built.named_parameters() if not p.requires_grad]
    adapters = [p for name, p in trained if "lora_" in name]
    base = [p for name, p in trained if "lora_" not in name] + [p for _, p in frozen]
    layers = [module for module in inner.modules() if isinstance(module, GradientCheckpointingLayer)]
    inside = {id(p) for layer in layers for p in layer.parameters()}

    def size(parameters: Any) -> int:
        return round(sum(p.numel() * packed.get(id(p), element) for p in parameters))

    return Weights(
        trained=sum(p.numel() for _, p in trained),
        frozen=sum(p.numel() for _, p in frozen),
        trained_bytes=sum(p.numel() * (4 if "lora_" in name else element) for name, p in trained),
        frozen_bytes=size(p for _, p in frozen),
        packed_bytes=size(base) + 4 * sum(p.numel() for p in adapters),
        largest_layer=max((size(layer.parameters()) for layer in layers), default=0),
        outside=size(p for p in built.parameters() if id(p) not in inside),
        vectors=sum(p.numel() for _, p in trained if p.dim() < 2),
        factored=sum(p.numel() // p.shape[-1] + p.numel() // p.shape[-2] for _, p in trained if p.dim() >= 2),
        small=sum(p.numel() for _, p in trained if p.numel() < SMALL),
        linears=_linears(built, inner, packed),
        built_bytes=element * sum(p.numel() for p in built.parameters()),
        quantised=sum(p.numel() for p in built.parameters() if id(p) in packed),
    )


def _linears(built: nn.Module, inner: PreTrainedModel, quantised: Mapping[int, float]) -> int:
    """Weights in plain linear layers, below adapters too, and in the head."""
    head: Any = inner.get_output_embeddings()
    weights = {id(m.weight): m.weight for m in built.modules() if type(m) is nn.Linear} | {id(head.weight): head.weight}
    return sum(weight.numel() for key, weight in weights.items() if key not in quantised)


def _packed(inner: PreTrainedModel, peft: Mapping[str, Any] | None) -> dict[int, float]:
    """Bytes of a weight in each quantised tensor, by the tensor's id."""
    kind = None if peft is None else peft.get("quantise")
    if peft is None or kind is None:
        return {}
    names = set(block_linears(inner))  # below adapters too, where the layer's name ends in base_layer
    linears = [module for name, module in inner.named_modules() if name in names and isinstance(module, nn.Linear)]
    scale = (1 + 4 / NF4_GROUP if peft.get("double_quantise", True) else 4) / NF4_BLOCK
    width = {"nf4": lambda _: 0.5 + scale, "int8": lambda columns: 1 + 4 / columns}[kind]
    adapters = {id(p) for name, p in inner.named_parameters() if "lora_" in name}
    return {id(m.weight): width(m.in_features) for m in linears if id(m.weight) not in adapters}
