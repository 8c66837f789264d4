"""Weights and optimizer states, whole, out of the pieces that ranks hold, and back; one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from deepspeed.runtime.zero.partition_parameters import GatheredParameters, is_zero_param
from torch import Tensor, nn
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
    """As `Optimizer.state_dict`, with the tensors of those weights whose place is `mine`; every rank goes through all of them.

    zero: the engine's optimizer. groups: the weights of each of its groups, as they were given.
    """
    settings = [{key: value for key, value in group.items() if key != "params"} for group in zero.optimizer.param_groups]
    numbers = _numbers(groups)
    states = {
        place: _whole_state(zero, parameter, group, mine(place))
        for group, (parameters, places) in enumerate(zip(groups, numbers, strict=True))
        for parameter, place in zip(parameters, places, strict=True)
    }
    known = {place: state for place, state in states.items() if state is not None}
    return {"state": known, "param_groups": [{**some, "params": own} for some, own in zip(settings, numbers, strict=True)]}


def _numbers(groups: Groups) -> list[list[int]]:
    """The weights' numbers, counted through all groups."""
    count = iter(range(sum(map(len, groups))))
    return [[next(count) for _ in group] for group in groups]


def _whole_state(zero: Any, parameter: nn.Parameter, group: int, mine: bool) -> State | None:
    """A weight's state, without its tensors where it is not `mine`; None before the first step."""
    flat = flat_of(zero, parameter, group)
    held = zero.optimizer.state.get(flat, {})
    whole = {key: _joined(zero, parameter, held[key]) for key in held if _is_cut(held[key], flat)}
    found = {key: _kept(whole.get(key, value)) for key, value in held.items() if mine or not torch.is_tensor(value)}
    return found if held else None


def _joined(zero: Any, parameter: Any, flat: Tensor) -> Tensor:
    """A weight's state, whole, out of the ranks' flat ones."""
    shape = parameter.ds_shape if is_zero_param(parameter) else parameter.shape
    whole = torch.zeros(shape.numel(), dtype=flat.dtype, device=parameter.device)
    of_weight, of_flat = places_of(zero, parameter)
    size = of_weight.stop - of_weight.start
    whole[of_weight] = flat[of_flat.start : of_flat.start + size].to(whole)
    torch.distributed.all_reduce(whole)
    return whole.view(shape)


def restore_optimizer(zero: Any, groups: Groups, saved: State, moments: Callable[[int], dict[str, Tensor]]) -> None:
    """Put a state as `Optimizer.state_dict` gives it back into pieces. Raises RuntimeError where it is of other weights.

    saved: without its tensors. moments: those of a weight, by its number.
    """
    base: Optimizer = zero.optimizer
    theirs = [group for group in saved["param_groups"] if group["params"]]
    if [len(group["params"]) for group in theirs] != [len(group) for group in groups]:
        raise RuntimeError("the checkpoint's optimizer trained other weights")
    for number, (parameters, settings) in enumerate(zip(groups, theirs, strict=True)):
        base.param_groups[number].update({key: value for key, value in settings.items() if key != "params"})
        for parameter, place in zip(parameters, settings["params"], strict=True):
            if place in saved["state"]:
                _restore(zero, parameter, number, {**saved["state"][place], **moments(place)})


def _restore(zero: Any, parameter: nn.Parameter, group: int, state: State) -> None:
    """Give a weight its state; the flat tensor that it is in gets one, with moments 0, if it has none yet."""
    flat = flat_of(zero, parameter, group)
    cut = {key for key, value in state.items() if torch.is_tensor(value) and value.ndim}
    if flat not in zero.optimizer.state:
        zero.optimizer.state[flat] = {key: torch.zeros_like(flat) if key in cut else _kept(value) for key, value in state.items()}
    of_weight, of_flat = places_of(zero, parameter)
    for key in cut:
        piece = state[key].flatten()[of_weight]
        zero.optimizer.state[flat][key][of_flat.start : of_flat.start + len(piece)] = piece.to(flat)


def flat_of(zero: Any, parameter: nn.Parameter, group: int) -> Tensor:
    """The tensor that the optimizer steps in place of this weight: this rank's pieces of many, one after the other, in float32."""
    if not is_zero_param(parameter):
        flat: Tensor = zero.single_partition_of_fp32_groups[group]
        return flat
    cut, _, _ = zero.grad_position[zero.get_param_id(parameter)]
    piece: Tensor = zero.fp32_partitioned_groups_flat[cut]
    return piece


def places_of(zero: Any, parameter: Any) -> tuple[slice, slice]:
    """Which elements of a weight this rank has, and where they lie in its flat tensor."""
    if is_zero_param(parameter):
        _, start, size = zero.grad_position[zero.get_param_id(parameter)]
        first = torch.distributed.get_rank() * size
        return slice(min(first, parameter.ds_numel), min(first + size, parameter.ds_numel)), slice(start, start + size)
    if parameter._hp_mapping is None:
        return slice(0, 0), slice(0, 0)
    ours, flat = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
    return slice(ours.start, ours.start + ours.numel), slice(flat.start, flat.start + flat.numel)


def _is_cut(value: Any, flat: Tensor) -> bool:
    return torch.is_tensor(value) and value.shape == flat.shape


def _kept(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if torch.is_tensor(value) else value
