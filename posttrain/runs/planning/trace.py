"""A model's shape from one forward pass of fake tensors: every family, no weights, no memory.

What autograd keeps is read off the pass itself (saved-tensor hooks); attention and experts are stood in for, since what they keep depends
on the segments of a row and on the backend, see `posttrain.runs.planning.attention`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from posttrain.functional.head import HeadSpec
from posttrain.models.counts import meta_model
from posttrain.models.flops import flop_model
from posttrain.models.loading import base_where_adapted
from posttrain.models.policy import PolicyModel, causal_lm
from posttrain.runs.planning.shapes import AttentionShape, ModelShape
from posttrain.runs.planning.weights import weights_of

NAME = "planned"
CAST = 2  # bytes of a weight as autocast keeps it; quantised layers keep none: they unpack their weights again
TOKENS = (64, 128)  # of the two passes from which the part that grows with the tokens is told from the rest


@dataclass
class Trace:
    """One pass. kept: bytes by the number of the layer that kept them, -1 outside. inputs: bytes of the layers' inputs."""

    kept: dict[int, int] = field(default_factory=dict)
    inputs: int = 0
    attentions: list[AttentionShape] = field(default_factory=list)


def model_shape(model: Mapping[str, Any], *, precision: str) -> ModelShape:
    """The shape of a model config with its adapters, as trained in `precision`."""
    built = adapted(base_where_adapted(model))
    inner = causal_lm(built)
    weights = weights_of(built, inner, model.get("peft"), precision)
    policy = PolicyModel(built, layout="tree", head=HeadSpec())
    operations = flop_model(policy, device="cpu", half=precision != "float32", knows_slopes=True)  # what a method and a device may use
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        _make_fake(built, precision)
    short, long = (_pass(built, inner, fake, tokens, autocast=precision == "bf16") for tokens in TOKENS)
    step = TOKENS[1] - TOKENS[0]
    slopes = {place: (long.kept[place] - short.kept.get(place, 0)) / step for place in long.kept}
    head = inner.get_output_embeddings()
    assert isinstance(head, nn.Module)
    output = head.weight
    assert isinstance(output, Tensor)
    token = sum(slopes.values())
    first = inner.get_input_embeddings().weight
    return ModelShape(
        weights=weights,
        attentions=tuple(long.attentions),
        fixed=sum(long.kept.values()) - token * TOKENS[1] - (CAST * weights.quantised if precision == "bf16" else 0),
        token=token,
        layer=max((slope for place, slope in slopes.items() if place >= 0), default=token),
        inputs=long.inputs / TOKENS[1],
        beyond=slopes.get(-1, 0.0),
        hidden=output.shape[1],
        vocabulary=output.shape[0],
        head_trained=output.requires_grad,
        tied=output is first,
        head_element=2 if precision != "float32" else 4,
        flops=operations,
    )


def adapted(model: Mapping[str, Any]) -> nn.Module:
    """The model of a config on the meta device, with its adapters."""
    built = meta_model(model)
    if model.get("peft") is None:
        return built
    from posttrain.models.peft import adapt_for_counting  # takes seconds to import

    return adapt_for_counting(built, model["peft"])


def _make_fake(model: nn.Module, precision: str) -> None:
    """Put fake tensors in the place of all weights and buffers; shared ones stay shared. Adapters are float32 whatever the precision."""
    kind = torch.bfloat16 if precision == "bf16_true" else torch.float32
    made: dict[int, Tensor] = {}
    for name, module in model.named_modules():
        wide = "lora_" in name
        for places in (module._parameters, module._buffers):
            for key, tensor in places.items():
                if tensor is not None:
                    if id(tensor) not in made:
                        made[id(tensor)] = _fake(tensor, torch.float32 if wide else kind)
                    places[key] = made[id(tensor)]


def _fake(tensor: Tensor, kind: torch.dtype) -> Tensor:
    if not isinstance(tensor, nn.Parameter):
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(torch.empty(tensor.shape, dtype=kind), requires_grad=tensor.requires_grad)


def _pass(built: nn.Module, inner: PreTrainedModel, fake: FakeTensorMode, tokens: int, *, autocast: bool) -> Trace:
    """One forward pass below the head in training mode."""
    trace = Trace()
    weights = {parameter.untyped_storage()._cdata for parameter in built.parameters()}
    seen: dict[int, torch.UntypedStorage] = {}
    place = -1

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in seen:
            seen[storage._cdata] = storage
            trace.kept[place] = trace.kept.get(place, 0) + storage.nbytes()
        return tensor

    def enter(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal place
        place = number
        states = args[0] if args else kwargs["hidden_states"]
        trace.inputs += states.numel() * states.element_size()

    def leave(*_: Any) -> None:
        nonlocal place
        place = -1

    layers = [module for module in inner.modules() if isinstance(module, GradientCheckpointingLayer)]
    handles: list[Any] = []
    for number, layer in enumerate(layers):
        handles.append(layer.register_forward_pre_hook(lambda _m, a, k, number=number: enter(number, a, k), with_kwargs=True))
        handles.append(layer.register_forward_hook(leave))
    built.train()
    with _stand_ins(inner, trace), fake, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ids = torch.zeros(1, tokens, dtype=torch.int64)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            inner.base_model(input_ids=ids, position_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return trace


@contextmanager
def _stand_ins(model: PreTrainedModel, trace: Trace) -> Iterator[None]:
    """Attention and experts that have the right shapes and keep nothing that depends on the data."""

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, sliding_window: int | None = None,
        softcap: float | None = None, s_aux: Tensor | None = None, **_: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        half = torch.is_autocast_enabled("cpu")
        size = 2 if half else query.element_size()
        explicit = softcap is not None or s_aux is not None
        widths = query.shape[1], key.shape[1], query.shape[3], value.shape[3]
        trace.attentions.append(AttentionShape(*widths, sliding_window, explicit, size))
        kind = torch.bfloat16 if half else query.dtype
        out = _StandIn.apply(query, key, value, kind)
        assert isinstance(out, Tensor)
        return out, None

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    ALL_EXPERTS_FUNCTIONS.register(NAME, experts)
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values()
    before = [(config, config._attn_implementation, getattr(config, "_experts_implementation", None)) for config in configs]
    for config in configs:
        config._attn_implementation = NAME
        config._experts_implementation = NAME
    yield
    for config, own, routed in before:
        config._attn_implementation, config._experts_implementation = own, routed


class _StandIn(torch.autograd.Function):
    """An output [1, T, H, E] that depends on queries, keys and values, and keeps nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, kind: torch.dtype) -> Tensor:
        return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3], dtype=kind)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError("a plan runs no backward pass")


def experts(module: Any, hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
    """Fused experts [T, H] -> [T, H] as grouped products, each token's row once for each expert it goes to."""
    count = chosen.shape[-1]
    rows = hidden.repeat_interleave(count, 0)
    ends = torch.zeros(module.num_experts, dtype=torch.int32)
    first = module.gate_up_proj if module.has_gate else module.up_proj
    grown = _grouped(rows, first, ends, transposed=module.is_transposed)
    active = module._apply_gate(grown) if module.has_gate else module.act_fn(grown)
    out = _grouped(active, module.down_proj, ends, transposed=module.is_transposed)
    weighted = out * shares.reshape(-1, 1).to(out.dtype)
    return weighted.view(len(hidden), count, -1).sum(1).to(hidden.dtype)


def _grouped(rows: Tensor, weight: Tensor, ends: Tensor, *, transposed: bool) -> Tensor:
    matrix = weight if transposed else weight.transpose(-2, -1)
    out = torch.ops.transformers.grouped_mm_fallback(rows.to(matrix.dtype), matrix, ends)
    assert isinstance(out, Tensor)
    return out
