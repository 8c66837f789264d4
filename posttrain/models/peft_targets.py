"""What gets adapters in a model, and what cannot have them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from torch import nn
from transformers import PreTrainedModel

from posttrain.errors import ConfigError, Problem
from posttrain.models.peft_options import ALL_LINEAR, PeftOptions
from posttrain.models.quantisation import block_linears, expert_parameters

# In a model with fused experts peft 0.21 takes these module names for parts of the experts, whatever layer they name; such
# layers (shared experts, dense layers) are adapted through their weight parameter instead.
EXPERT_NAMES = frozenset({"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
FULL = "train without adapters: model.peft=null"


@dataclass(frozen=True)
class Targets:
    """What gets adapters. modules: as peft's `target_modules`. parameters: as its `target_parameters`. kept: layers behind `parameters`."""

    modules: str | list[str]
    parameters: list[str]
    kept: frozenset[str]


def checked_targets(options: PeftOptions, model: PreTrainedModel) -> Targets:
    """What the options name in this model. Raises ConfigError for what matches nothing and for what cannot be combined."""
    targets = find_targets(options, model)
    finders = (_target_problems, _unfit_problems, _shared_problems, _tied_problems, _head_problems)
    if problems := [*_combination_problems(options, targets), *chain.from_iterable(find(options, model) for find in finders)]:
        raise ConfigError(problems)
    return targets


def find_targets(options: PeftOptions, model: PreTrainedModel) -> Targets:
    """The modules and parameters that get adapters."""
    experts = expert_targets(options, model)
    if not expert_parameters(model):
        return Targets(options.targets, experts, frozenset())
    named = block_linears(model)
    if options.targets != ALL_LINEAR:
        named = [name for name in named if any(matches(target, [name]) for target in options.targets)]
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


def expert_targets(options: PeftOptions, model: nn.Module) -> list[str]:
    """Endings of the fused expert tensors that get adapters."""
    if options.target_parameters != "auto":
        return list(options.target_parameters)
    return expert_parameters(model) if options.targets == ALL_LINEAR else []


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
        problems += [_no_match("targets", target, linears) for target in options.targets if not matches(target, modules)]
    if options.target_parameters != "auto":
        missing = [target for target in options.target_parameters if not matches(target, tensors)]
        problems += [_no_match("target_parameters", target, expert_parameters(model)) for target in missing]
    leaves = sorted({name.rsplit(".", 1)[-1] for name in modules if not name.rsplit(".", 1)[-1].isdigit()})
    problems += [_no_match("modules_to_save", target, leaves) for target in options.modules_to_save if not matches(target, modules)]
    return problems


def _unfit_problems(options: PeftOptions, model: PreTrainedModel) -> Iterator[Problem]:
    """What is named and there, but is no matrix (targets) or no module to copy (modules_to_save)."""
    modules, tensors = dict(model.named_modules()), dict(model.named_parameters())
    for target in _listed(options.targets):
        for name in matched(target, modules)[:1]:
            if f"{name}.weight" not in tensors or tensors[f"{name}.weight"].ndim < 2:
                message = f"{target!r} ({type(modules[name]).__name__}) cannot have adapters: it has no matrix of its own"
                inside = sorted({_leaf(below) for below in block_linears(model) if below.startswith(f"{name}.")})
                hint = f"name what is inside: {', '.join(inside)}" if inside else "train it in full: model.peft.modules_to_save"
                yield Problem("model.peft.targets", message, hint)
    for target in _listed(options.target_parameters):
        if any(tensors[name].ndim not in (2, 3) for name in matched(target, tensors)):
            hint = "train its module in full: model.peft.modules_to_save"
            yield Problem("model.peft.target_parameters", f"{target!r} cannot have adapters: it is no matrix", hint)
    for target in options.modules_to_save:
        if any(isinstance(modules[name], nn.ModuleList) for name in matched(target, modules)):
            yield Problem(
                "model.peft.modules_to_save", f"{target!r} is a list of modules, which is not trained as one", "name what is in it"
            )


def _shared_problems(options: PeftOptions, model: PreTrainedModel) -> Iterator[Problem]:
    """One weight that several keys want, and nothing that is left to adapt."""
    modules = dict(model.named_modules())
    saved = [name for target in options.modules_to_save for name in matched(target, modules)]
    inside = {name for name in modules if any(name == whole or name.startswith(f"{whole}.") for whole in saved)}
    adapted = {target: set(matched(target, modules)) for target in _listed(options.targets)}
    if options.targets == ALL_LINEAR:
        adapted = {ALL_LINEAR: set(block_linears(model))}
        if adapted[ALL_LINEAR] and adapted[ALL_LINEAR] <= inside:
            yield Problem("model.peft.modules_to_save", "every linear layer is trained in full, and none is left for adapters", FULL)
        adapted[ALL_LINEAR] -= inside
    for target in sorted(target for target, names in adapted.items() if names & inside):
        yield Problem("model.peft.targets", f"{target!r} is also trained in full, by modules_to_save", "name it in one of the two")
    for target in _listed(options.target_parameters):
        owners = {name.rpartition(".")[0] for name in matched(target, dict(model.named_parameters()))}
        if any(owners & names for names in adapted.values()):
            message = f"{target!r} has adapters by targets already"
            yield Problem("model.peft.target_parameters", message, "leave it out, or list model.peft.targets without it")
        if owners & inside:
            yield Problem(
                "model.peft.target_parameters", f"{target!r} is also trained in full, by modules_to_save", "name it in one of the two"
            )


def _head_problems(options: PeftOptions, model: PreTrainedModel) -> Iterator[Problem]:
    """Dropout in front of adapters on the output head, whose log-probabilities are computed with the adapters in its weight."""
    head = [name for name, module in model.named_modules() if module is model.get_output_embeddings()]
    targets = [*_listed(options.targets), *(name.removesuffix(".weight") for name in _listed(options.target_parameters))]
    if options.dropout > 0 and any(matches(target, head) for target in targets):
        message = "dropout cannot be applied to adapters on the output head"
        yield Problem("model.peft.dropout", message, "set it to 0, or train the head in full: model.peft.modules_to_save")


def _listed(names: str | list[str]) -> list[str]:
    """The names that are listed: none for `all-linear` and `auto`."""
    return [] if isinstance(names, str) else names


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
        if matches(target, names) or matches(target, [f"{name}.weight" for name in names])
    ]


def matched(ending: str, names: Iterable[str]) -> list[str]:
    """The full names that `ending` means."""
    return [name for name in names if matches(ending, [name])]


def matches(ending: str, names: list[str]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for name in names)


def _no_match(key: str, target: str, names: list[str]) -> Problem:
    return Problem(f"model.peft.{key}", f"{target!r} matches nothing in the model", f"there are: {', '.join(names) or 'none'}")
