"""Weights and optimizer states, whole, out of the pieces that ranks hold, and back; one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from deepspeed.runtime.zero.partition_parameters import GatheredParameters, is_zero_param
from deepspeed.utils import safe_get_full_optimizer_state, safe_set_full_optimizer_state, safe_set_local_optimizer_state
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

Groups = Sequence[Sequence[nn.Parameter]]
State = dict[str, Any]


def whole_tensors(module: nn.Module, mine: Callable[[int], bool], names: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Copies on the CPU of those entries of the module's state dict whose place is `mine`; every rank goes through all of them.

    names: the entries to go through; None for all.
    """
    kept = [(name, tensor) for name, tensor in module.state_dict(keep_vars=True).items() if names is None or name in names]
    for place, (name, tensor) in enumerate(kept):
        with GatheredParameters(tensor):
            if mine(place):
                yield name, tensor.detach().to("cpu", copy=True)


def optimizer_part(zero: Any, groups: Groups, mine: Callable[[int], bool]) -> State:
    """As `Optimizer.state_dict`, with the states of those weights whose place is `mine`; every rank goes through all of them.

    zero: the engine's optimizer. groups: the weights of each of its groups, as they were given.
    """
    base, places = zero.optimizer, iter(range(sum(map(len, groups))))
    numbers = [[next(places) for _ in group] for group in groups]
    states: dict[int, State] = {}
    for group, (parameters, some) in enumerate(zip(groups, numbers, strict=True)):
        for parameter, place in zip(parameters, some, strict=True):
            flat = flat_of(zero, parameter, group)
            held = base.state.get(flat, {})
            whole = {key: safe_get_full_optimizer_state(parameter, key) for key in held if _is_cut(held[key], flat)}
            if mine(place) and held:
                states[place] = {key: _kept(whole.get(key, value)) for key, value in held.items()}
    settings = [{key: value for key, value in group.items() if key != "params"} for group in base.param_groups]
    return {"state": states, "param_groups": [{**some, "params": own} for some, own in zip(settings, numbers, strict=True)]}


def restore_optimizer(zero: Any, groups: Groups, saved: State) -> None:
    """Put a state as `Optimizer.state_dict` gives it back into pieces. Raises RuntimeError where it is of other weights."""
    base: Optimizer = zero.optimizer
    theirs = [group for group in saved["param_groups"] if group["params"]]
    if [len(group["params"]) for group in theirs] != [len(group) for group in groups]:
        raise RuntimeError("the checkpoint's optimizer trained other weights")
    for number, (parameters, settings) in enumerate(zip(groups, theirs, strict=True)):
        base.param_groups[number].update({key: value for key, value in settings.items() if key != "params"})
        known = [(parameter, saved["state"][place]) for parameter, place in zip(parameters, settings["params"]) if place in saved["state"]]
        for parameter, state in known:
            _begin(base, flat_of(zero, parameter, number), parameter, state)
    if not is_zero_param(groups[0][0]) and saved["state"]:
        zero._lazy_init_hp_params_optimizer_state()
    for parameters, settings in zip(groups, theirs, strict=True):
        for parameter, place in zip(parameters, settings["params"], strict=True):
            _set(parameter, saved["state"].get(place, {}))


def flat_of(zero: Any, parameter: nn.Parameter, group: int) -> Tensor:
    """The tensor that the optimizer steps in place of this weight: this rank's pieces of many, one after the other, in float32."""
    if not is_zero_param(parameter):
        return zero.single_partition_of_fp32_groups[group]  # type: ignore[no-any-return]
    cut, _, _ = zero.grad_position[zero.get_param_id(parameter)]
    return zero.fp32_partitioned_groups_flat[cut]  # type: ignore[no-any-return]


def _begin(base: Optimizer, flat: Tensor, parameter: nn.Parameter, state: State) -> None:
    """Give a flat tensor the state that the optimizer makes at its first step, once, with the moments 0."""
    if flat in base.state:
        return
    shape = parameter.ds_shape if is_zero_param(parameter) else parameter.shape  # type: ignore[attr-defined]
    cut = {key for key, value in state.items() if torch.is_tensor(value) and value.shape == shape and value.ndim}
    base.state[flat] = {key: torch.zeros_like(flat) if key in cut else _kept(value) for key, value in state.items()}


def _set(parameter: nn.Parameter, state: State) -> None:
    for key, value in state.items():
        if not torch.is_tensor(value) or not value.ndim:
            continue
        if is_zero_param(parameter):
            safe_set_local_optimizer_state(parameter, piece_of(value, parameter), key)
        else:
            safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)


def piece_of(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """This rank's piece of a whole tensor, cut as the weight is: equal pieces, the last ones filled up with zeros."""
    size, rank = parameter.ds_tensor.ds_numel, torch.distributed.get_rank()  # type: ignore[attr-defined]
    flat = value.flatten()[rank * size : (rank + 1) * size]
    return F.pad(flat, (0, size - len(flat)))


def _is_cut(value: Any, flat: Tensor) -> bool:
    return torch.is_tensor(value) and value.shape == flat.shape


def _kept(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if torch.is_tensor(value) else value
