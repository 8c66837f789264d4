"""From a model config to the policy that methods train: weights, quantisation, adapters, exact layout, memory options."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.errors import ConfigError, Problem
from posttrain.models.attention import backends
from posttrain.models.attention.passing import ALONE, own_ring
from posttrain.models.float8 import to_float8
from posttrain.models.loading import build_model, weights_dtype
from posttrain.models.norms import fuse_norms
from posttrain.models.policy import PolicyModel, causal_lm
from posttrain.models.probe import LayoutError, Probe, probe
from posttrain.models.vocabulary import fit_to_tokenizer

log = logging.getLogger(__name__)


def build_policy(
    model: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    precision: str,
    seed: int,
    device: torch.device,
    context: int = 1,
    context_method: str = "ring",
) -> PolicyModel:
    """The policy of a model config, ready to train, on the CPU (the strategy moves it).

    tokenizer: every id of it gets a row in the vocabulary. precision: float32, bf16 or bf16_true. device: where it will run; the layout
    is probed there. context: ranks that rows are cut over; with several, every process calls this. context_method: of attention over such
    rows, ring, ulysses or torch. Raises ConfigError if the layout asked for is not exact for the model's family, or its rows cannot be cut.
    """
    base = build_model(model, dtype=weights_dtype(precision), seed=seed)
    fit_to_tokenizer(base, tokenizer, random_weights=model["weights"] == "random", seed=seed)
    found = _probe(base, model, device)
    if model.get("float8"):
        to_float8(base, model["float8"], emulate=device.type == "cpu")
    peft = model.get("peft")
    wrapped = base if peft is None else _adapted(base, peft, seed)
    inner = causal_lm(wrapped)
    if context > 1 and (problems := [*obstacles(inner, found.layout), *uneven_heads(inner, context_method, context)]):
        raise ConfigError(problems)
    if found.layout != "padded":
        inner.set_attn_implementation(backends.register())
    fuse_norms(inner)
    if model.get("gradient_checkpointing"):
        inner.activation_checkpointing_enable({"use_reentrant": False})
    if model.get("compile"):
        compile_layers(inner)
    policy = PolicyModel(
        wrapped,
        layout=found.layout,
        head=found.head,
        attention=model.get("attention", "auto"),
        aux_coefficient=aux_coefficient(inner),
        base_with_adapters_off=peft is not None and _restores(peft),
        ring=own_ring(context) if context > 1 else ALONE,
        cut=context_method,
    )
    return policy.train()


def _restores(peft: Mapping[str, Any]) -> bool:
    from posttrain.models.peft import disabling_restores_base

    return disabling_restores_base(peft)


def _adapted(base: PreTrainedModel, peft: Mapping[str, Any], seed: int) -> nn.Module:
    from posttrain.models.peft import apply_peft  # peft takes seconds to import, and most runs do without

    return apply_peft(base, peft, seed=seed)


def _probe(base: PreTrainedModel, model: Mapping[str, Any], device: torch.device) -> Probe:
    asked = model.get("layout", "auto")
    try:
        found = probe(base, asked=asked, attention=model.get("attention", "auto"), device=device)
    except LayoutError as error:
        hint = "use model.layout=auto" if asked != "auto" else "please report this family"
        raise ConfigError(Problem("model.layout", str(error), hint)) from error
    if asked == "auto" and found.layout != "tree":
        log.warning(
            "token trees are not exact for %s (%s): using the %s layout", base.config.model_type, found.errors["tree"], found.layout
        )
    return found


def obstacles(model: PreTrainedModel, layout: str) -> Iterator[Problem]:
    """Why a model's rows cannot be cut over ranks; nothing where they can. layout: what the probe found."""
    key, family = "hardware.context_parallel", model.config.model_type
    if layout != "tree":
        yield Problem(key, f"only token trees can be cut, and {family} needs the {layout} layout", f"{key}=1")
    if aux_coefficient(model):
        message = f"the load-balancing loss of {family} is of whole rows, which no rank has"
        yield Problem(key, message, f"{key}=1, or model.architecture.router_aux_loss_coef=0 with random weights")
    if any(name.endswith(".sinks") for name, _ in model.named_parameters()):
        yield Problem(key, f"the attention sinks of {family} are not known to attention over cut rows", f"{key}=1")
    if getattr(model.config, "attention_dropout", 0.0):
        yield Problem(
            key, f"{family} drops attention weights ({model.config.attention_dropout:g}), attention over cut rows does not", f"{key}=1"
        )


def uneven_heads(model: PreTrainedModel, method: str, size: int) -> Iterator[Problem]:
    """Why heads cannot be exchanged for stretches over so many ranks; nothing where they can, and for other methods."""
    heads = model.config.get_text_config().num_attention_heads
    if method == "ulysses" and heads % size:
        message = f"{heads} heads are not shared out evenly over {size} devices"
        yield Problem("hardware.context_method", message, "hardware.context_method=ring, or another hardware.context_parallel")


def aux_coefficient(model: PreTrainedModel) -> float:
    """Weight of the family's load-balancing loss, 0 where it has none."""
    return float(getattr(model.config, "router_aux_loss_coef", 0.0) or 0.0)


def compile_layers(model: PreTrainedModel) -> None:
    """Compile every decoder layer in place, with dynamic lengths; attention over a tree stays outside the compiled graphs."""
    layers = model.base_model.layers
    assert isinstance(layers, nn.ModuleList)
    for layer in layers:
        layer.compile(dynamic=True)
