"""Adapters: LoRA, DoRA, rsLoRA, PiSSA on full or quantised weights, through the peft library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel

from posttrain.models.adapters import merge_adapter
from posttrain.models.hub import is_local
from posttrain.models.loading import DEFAULT_SEED, seeded
from posttrain.models.peft_options import PeftOptions, peft_options
from posttrain.models.peft_targets import Targets, checked_targets, matches
from posttrain.models.quantisation import dequantise, is_quantised, quantise


def apply_peft(model: PreTrainedModel, peft: Mapping[str, Any], *, seed: int | None = None) -> PeftModel:
    """Put adapters on `model` (in place; its weights are frozen, and quantised first where asked) and return the PEFT model.

    Adapter weights are float32 and drawn from `seed` alone (None: 0). Raises ConfigError for unknown keys, targets that match
    nothing, and combinations peft cannot do.
    """
    options = peft_options(peft)
    targets = checked_targets(options, model)
    if options.quantise is not None:
        quantise(
            model,
            kind=options.quantise,
            double=options.double_quantise,
            outlier_threshold=options.outlier_threshold,
            compute_dtype=None if options.compute_dtype == "auto" else getattr(torch, options.compute_dtype),
            keep=targets.kept,
        )
    with seeded(DEFAULT_SEED if seed is None else seed):
        return get_peft_model(model, lora_config(options, targets, model))


def adapt_for_counting(model: PreTrainedModel, peft: Mapping[str, Any]) -> PeftModel:
    """`apply_peft` for a model on the meta device: the same adapters, without the quantisation and the SVD that need values."""
    options = peft_options(peft)
    targets = checked_targets(options, model)
    plain = replace(options, quantise=None, kind="lora" if options.kind == "pissa" else options.kind)
    return get_peft_model(model, lora_config(plain, targets, model), low_cpu_mem_usage=True)


def _trained_in_full(options: PeftOptions, model: nn.Module) -> list[str]:
    """Full names: peft takes a short one as the end of any name, so that `norm` would mean `q_norm` too."""
    return [name for name, _ in model.named_modules() if any(matches(ending, [name]) for ending in options.modules_to_save)]


def lora_config(options: PeftOptions, targets: Targets, model: PreTrainedModel) -> LoraConfig:
    """peft's config of the options for this model."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=model.config.name_or_path or None,
        revision=_commit_of(model),
        r=options.r,
        lora_alpha=options.alpha,  # type: ignore[arg-type]
        lora_dropout=options.dropout,
        target_modules=targets.modules,
        target_parameters=targets.parameters or None,
        modules_to_save=_trained_in_full(options, model) or None,
        use_dora=options.kind == "dora",
        use_rslora=options.kind == "rslora",
        init_lora_weights="pissa" if options.kind == "pissa" else True,
    )


def _commit_of(model: PreTrainedModel) -> str | None:
    """The commit that a model of the hub is of; None for a folder, or where it is not known. A branch may move, and then the adapter's base
    would be another one."""
    source = model.config.name_or_path
    commit = getattr(model.config, "_commit_hash", None)
    return commit if source and not is_local(source) and isinstance(commit, str) else None


def disabling_restores_base(peft: Mapping[str, Any]) -> bool:
    """Whether the model with its adapters off is the model they were put on: not for PiSSA, which moves weights out of the base.

    Trained copies of `modules_to_save` are switched off with the adapters, so they do not matter here.
    """
    return peft_options(peft).kind != "pissa"


def merge(model: PeftModel, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The plain model with the adapters in its weights; `model` is used up.

    A quantised base is first written back to full precision (`dtype`; None: the dtype of its unquantised weights): adding to
    rounded 4-bit weights and rounding again would lose most of what was learned.
    """
    if not is_quantised(model):
        return merge_adapter(model)
    config = adapter_config(model)
    adapter = get_peft_model_state_dict(model)
    base: PreTrainedModel = model.unload()
    dequantise(base, dtype=dtype or _full_dtype(base))
    twin: Any = get_peft_model(base, config)
    set_peft_model_state_dict(twin, adapter)
    return merge_adapter(twin)


def _full_dtype(model: PreTrainedModel) -> torch.dtype:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight.dtype


def adapter_config(model: PeftModel) -> LoraConfig:
    """The config of the adapter `apply_peft` put on the model."""
    config = model.peft_config["default"]
    assert isinstance(config, LoraConfig)
    return config


def base_model(model: PeftModel) -> PreTrainedModel:
    """The transformers model under the adapters."""
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    return base
