"""Adapters: LoRA, DoRA, rsLoRA, PiSSA on full or quantised weights, through the peft library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import nn
from transformers import PreTrainedModel

from posttrain.errors import ConfigError, Problem
from posttrain.models.adapters import merge_adapter
from posttrain.models.hub import is_local
from posttrain.models.loading import DEFAULT_SEED, seeded
from posttrain.models.quantisation import block_linears, dequantise, expert_parameters, is_quantised, quantise

ALL_LINEAR = "all-linear"
# In a model with fused experts peft 0.21 takes these module names for parts of the experts, whatever layer they name; such
# layers (shared experts, dense layers) are adapted through their weight parameter instead.
EXPERT_NAMES = frozenset({"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})


@dataclass(frozen=True)
class Targets:
    """What gets adapters. modules: as peft's `target_modules`. parameters: as its `target_parameters`. kept: layers behind `parameters`."""

    modules: str | list[str]
    parameters: list[str]
    kept: frozenset[str]


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PeftOptions:
    """The keys of `model.peft`.

    kind: `lora` (arXiv 2106.09685), `dora` (2402.09353), `rslora` (2312.03732: scale alpha / sqrt(r)), `pissa` (2404.02948: starts
        from the leading singular vectors of the weights, which moves them out of the base).
    targets: `all-linear`, or endings of module names. target_parameters: endings of fused expert tensors; `auto`: all of them when
        targets is all-linear, none otherwise.
    modules_to_save: endings of modules that are trained in full and saved with the adapter.
    quantise: how the frozen base is kept, see `quantisation.quantise`.
    """

    kind: Literal["lora", "dora", "rslora", "pissa"]
    r: int = 16
    alpha: float = 32
    dropout: float = 0.0
    targets: Literal["all-linear"] | list[str] = "all-linear"
    target_parameters: Literal["auto"] | list[str] = "auto"
    modules_to_save: list[str] = field(default_factory=list)
    quantise: Literal["nf4", "int8"] | None = None
    double_quantise: bool = True
    outlier_threshold: float = 6.0
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"


def peft_options(peft: Mapping[str, Any]) -> PeftOptions:
    """Check the keys and types of `model.peft`. Raises ConfigError with every problem."""
    try:
        return TypeAdapter(PeftOptions).validate_python(dict(peft))
    except ValidationError as error:
        raise ConfigError([_problem(detail) for detail in error.errors()]) from error


def _problem(detail: Any) -> Problem:
    key = ".".join(str(part) for part in detail["loc"])
    close = get_close_matches(key, list(PeftOptions.__dataclass_fields__), n=1)
    hint = f"did you mean {close[0]}?" if close and close[0] != key else ""
    return Problem(f"model.peft.{key}", f"{detail['msg']}, got {detail['input']!r}", hint)


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


def checked_targets(options: PeftOptions, model: PreTrainedModel) -> Targets:
    """What the options name in this model. Raises ConfigError for what matches nothing and for what cannot be combined."""
    targets = find_targets(options, model)
    if problems := [*_combination_problems(options, targets), *_target_problems(options, model), *_tied_problems(options, model)]:
        raise ConfigError(problems)
    return targets


def find_targets(options: PeftOptions, model: PreTrainedModel) -> Targets:
    """The modules and parameters that get adapters."""
    experts = expert_targets(options, model)
    if not expert_parameters(model):
        return Targets(options.targets, experts, frozenset())
    named = block_linears(model)
    if options.targets != ALL_LINEAR:
        named = [name for name in named if any(_matches(target, [name]) for target in options.targets)]
    kept = frozenset(name for name in named if _leaf(name) in EXPERT_NAMES)
    wanted = {_leaf(name) for name in named} if options.targets == ALL_LINEAR else options.targets
    modules = sorted(target for target in wanted if _leaf(target) not in EXPERT_NAMES)
    return Targets(modules, sorted({*experts, *(f"{_below_layer(name)}.weight" for name in kept)}), kept)


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _below_layer(name: str) -> str:
    """``model.layers.3.mlp.shared_expert.up_proj`` without what comes up to the layer's number."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :]) if numbers else name


def _trained_in_full(options: PeftOptions, model: nn.Module) -> list[str]:
    """Full names: peft takes a short one as the end of any name, so that `norm` would mean `q_norm` too."""
    return [name for name, _ in model.named_modules() if any(_matches(ending, [name]) for ending in options.modules_to_save)]


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


def expert_targets(options: PeftOptions, model: nn.Module) -> list[str]:
    """Endings of the fused expert tensors that get adapters."""
    if options.target_parameters != "auto":
        return list(options.target_parameters)
    return expert_parameters(model) if options.targets == ALL_LINEAR else []


def disabling_restores_base(peft: Mapping[str, Any]) -> bool:
    """Whether the model with its adapters off is the model they were put on: not for PiSSA, which moves weights out of the base.

    Trained copies of `modules_to_save` are switched off with the adapters, so they do not matter here.
    """
    return peft_options(peft).kind != "pissa"


def _combination_problems(options: PeftOptions, targets: Targets) -> list[Problem]:
    problems = []
    if options.kind == "pissa" and options.quantise is not None:
        problems.append(Problem("model.peft.quantise", "PiSSA needs the full weights for its SVD", "use kind=lora or quantise=null"))
    attention_only = "or adapt attention alone: model.peft.targets=[q_proj,k_proj,v_proj,o_proj]"
    experts = ", ".join(targets.parameters)
    if targets.parameters and options.kind in {"dora", "pissa"}:
        message = f"kind={options.kind} cannot adapt the experts' tensors {experts}"
        problems.append(Problem("model.peft.kind", message, f"use kind=lora, {attention_only}"))
    if targets.parameters and options.dropout > 0:
        message = f"dropout cannot be applied to adapters on the experts' tensors {experts}"
        problems.append(Problem("model.peft.dropout", message, f"set it to 0, {attention_only}"))
    return problems


def _target_problems(options: PeftOptions, model: nn.Module) -> list[Problem]:
    """One problem for each target ending that matches nothing, with the names there are."""
    modules = [name for name, _ in model.named_modules() if name]
    linears = sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)})
    tensors = [name for name, _ in model.named_parameters()]
    problems = []
    if options.targets != ALL_LINEAR:
        problems += [_no_match("targets", target, linears) for target in options.targets if not _matches(target, modules)]
    if options.target_parameters != "auto":
        missing = [target for target in options.target_parameters if not _matches(target, tensors)]
        problems += [_no_match("target_parameters", target, expert_parameters(model)) for target in missing]
    leaves = sorted({name.rsplit(".", 1)[-1] for name in modules if not name.rsplit(".", 1)[-1].isdigit()})
    problems += [_no_match("modules_to_save", target, leaves) for target in options.modules_to_save if not _matches(target, modules)]
    return problems


def _tied_problems(options: PeftOptions, model: PreTrainedModel) -> list[Problem]:
    """Adapters on the embedding or the head where the two share one weight: merged, they would change both."""
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    if last is None or first.weight is not last.weight:
        return []
    names = [name for name, module in model.named_modules() if module is first or module is last]
    wanted = {"targets": options.targets, "target_parameters": options.target_parameters}
    lists = {key: value for key, value in wanted.items() if isinstance(value, list)}
    hint = "leave it out, or train it in full with model.peft.modules_to_save"
    return [
        Problem(f"model.peft.{key}", f"{target!r} cannot be adapted: input embedding and output head share one weight", hint)
        for key, targets in lists.items()
        for target in targets
        if _matches(target, names) or _matches(target, [f"{name}.weight" for name in names])
    ]


def _matches(ending: str, names: list[str]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for name in names)


def _no_match(key: str, target: str, names: list[str]) -> Problem:
    return Problem(f"model.peft.{key}", f"{target!r} matches nothing in the model", f"there are: {', '.join(names) or 'none'}")


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
