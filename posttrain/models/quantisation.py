"""Frozen base weights in 4 or 8 bits (bitsandbytes), quantised in memory: pretrained and random models alike, on CPU and CUDA.

Only linear layers inside the blocks are quantised. Embeddings, the output head, norms, routers and fused expert tensors keep
their dtype.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from posttrain.errors import ConfigError, MissingExtra, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

# Small linear layers whose rounding would change which expert or gate is chosen.
ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})


def quantise(
    model: PreTrainedModel,
    *,
    kind: Literal["nf4", "int8"],
    double: bool = True,
    outlier_threshold: float = 6.0,
    compute_dtype: torch.dtype | None = None,
    keep: Collection[str] = (),
) -> PreTrainedModel:
    """Replace the block's linear layers by quantised ones, in place; they are frozen.

    kind: `nf4`, 4-bit NormalFloat in blocks of 64 (QLoRA, arXiv 2305.14314), `double` quantises the scales too;
        `int8`, rows scaled to 8 bits (LLM.int8, arXiv 2208.07339), where input features beyond `outlier_threshold` stay in 16 bits;
        these are found over a whole batch, so a threshold above 0 lets a row's result depend a little on its neighbours.
    compute_dtype: of the matrix products in nf4; None: the dtype of the weights. keep: names of layers to leave as they are.
    Raises MissingExtra without bitsandbytes, ConfigError when there is no linear layer.
    """
    bnb = _bitsandbytes()
    names = [name for name in block_linears(model) if name not in keep]
    if not names:
        raise ConfigError(Problem("model.peft.quantise", "the model has no linear layer to quantise"))
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        layer = _nf4(bnb, linear, double, compute_dtype) if kind == "nf4" else _int8(bnb, linear, outlier_threshold)
        model.set_submodule(name, layer)
    _flag(model, four=kind == "nf4", eight=kind == "int8")
    _report(model, kind, len(names))
    return model


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ModuleNotFoundError as error:
        raise MissingExtra("model.peft.quantise", "quant") from error
    return bitsandbytes


def block_linears(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers inside the blocks: all but the output head and routers."""
    head = model.get_output_embeddings()
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    return [name for name in linears if name.rsplit(".", 1)[-1] not in ROUTERS]


def _nf4(bnb: Any, linear: nn.Linear, double: bool, compute_dtype: torch.dtype | None) -> nn.Module:
    weight = linear.weight
    layer = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=compute_dtype or weight.dtype,
        compress_statistics=double,
        quant_type="nf4",
        device="meta",
    )
    packed = bnb.nn.Params4bit(weight.data, requires_grad=False, compress_statistics=double, quant_type="nf4", module=layer)
    layer.weight = packed.to(weight.device)
    layer.bias = _frozen(linear.bias)
    # On AVX512-BF16 processors an evaluation forward repacks the weight for a kernel without a backward, and training goes on with
    # wrong gradients; this attribute is the switch.
    layer.support_avx512bf16_for_cpu = False
    return layer


def _int8(bnb: Any, linear: nn.Linear, threshold: float) -> nn.Module:
    # bitsandbytes would report the cast to 16 bits, which is part of the method, once for each layer and call.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    weight = linear.weight
    layer = bnb.nn.Linear8bitLt(
        linear.in_features, linear.out_features, bias=linear.bias is not None, has_fp16_weights=False, threshold=threshold, device="meta"
    )
    layer.weight = bnb.nn.Int8Params(weight.data, requires_grad=False, has_fp16_weights=False).to(weight.device)
    layer.bias = _frozen(linear.bias)
    return layer


def _frozen(bias: nn.Parameter | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.data, requires_grad=False)


def _report(model: PreTrainedModel, kind: str, layers: int) -> None:
    log.info("Quantised %d linear layers to %s.", layers, kind)
    experts = expert_parameters(model)
    if experts:
        log.warning("Fused expert tensors are not linear layers and keep %s: %s.", model.dtype, ", ".join(experts))


def expert_parameters(model: nn.Module) -> list[str]:
    """Endings of the names of fused expert weights, such as ``experts.gate_up_proj``: tensors [experts, out, in]."""
    tensors = [name for name, parameter in model.named_parameters() if parameter.ndim == 3 and ".experts." in name]
    return sorted({".".join(name.split(".")[-2:]) for name in tensors})


def is_quantised(model: nn.Module) -> bool:
    """Whether any weight is a bitsandbytes one."""
    return any(type(parameter).__name__ in {"Params4bit", "Int8Params"} for parameter in model.parameters())


def quantisation_of(model: PreTrainedModel) -> dict[str, Any] | None:
    """The keywords of `quantise` that decide a quantised model's weights, adapters on it or not; None if it is not quantised."""
    for parameter in model.parameters():
        if type(parameter).__name__ == "Params4bit":
            return {"kind": "nf4", "double": parameter.quant_state.nested, "keep": _kept(model)}  # type: ignore[attr-defined]
        if type(parameter).__name__ == "Int8Params":
            return {"kind": "int8", "keep": _kept(model)}
    return None


def _kept(model: PreTrainedModel) -> list[str]:
    """Names, without peft's wrappers, of the blocks' linear layers that are not quantised."""
    plain = [name for name in block_linears(model) if type(model.get_submodule(name)) is nn.Linear and ".lora_" not in name]
    return sorted(name.replace(".base_layer", "") for name in plain)


@torch.no_grad()
def dequantise(model: nn.Module, *, dtype: torch.dtype) -> nn.Module:
    """Replace quantised layers by plain linear layers that hold the same (rounded) weights in `dtype`, in place."""
    bnb = _bitsandbytes()
    for name, module in list(model.named_modules()):
        if isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
            model.set_submodule(name, _plain(bnb, module, dtype))
    _flag(model, four=False, eight=False)
    return model


def _flag(model: nn.Module, *, four: bool, eight: bool) -> None:
    """peft picks its bitsandbytes layers by these attributes of the model."""
    vars(model).update(is_loaded_in_4bit=four, is_loaded_in_8bit=eight)


def _plain(bnb: Any, layer: Any, dtype: torch.dtype) -> nn.Linear:
    linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    linear.weight = nn.Parameter(dequantised_weight(bnb, layer).to(dtype), requires_grad=False)
    if layer.bias is not None:
        linear.bias = nn.Parameter(layer.bias.data.to(dtype), requires_grad=False)
    return linear


def dequantised_weight(bnb: Any, layer: Any) -> torch.Tensor:
    """The weight [out, in] a quantised layer stands for."""
    if isinstance(layer, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    # After the first forward the scales have moved from the weight to the layer's state.
    scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
    return bnb.functional.int8_vectorwise_dequant(layer.weight.data, scales)
