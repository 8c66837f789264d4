"""What methods and runs ask of ZeRO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
from deepspeed.runtime.zero.partition_parameters import GatheredParameters, ZeroParamStatus, is_zero_param, register_external_parameter
from torch import Tensor, nn

from posttrain.methods.base import Method
from posttrain.models.sharding import Replicated, bit_sum
from posttrain.runs.zero.pieces import whole_tensors


class WholeWeights(Replicated):
    """Stages 1 and 2: gradients and optimizer states are in pieces, every rank's weights are whole. The engine cuts when it wraps."""

    def clip_gradients(self, parameters: Sequence[nn.Parameter], limit: float) -> float:
        """Not known yet: the engine clips inside its step, and tells the norm then (see `ZeroPrecision`)."""
        return float("nan")

    def idle_loss(self, parameters: Sequence[nn.Parameter], *, last: bool) -> Tensor:
        """A constant, of which nothing is differentiated: the engine sums what micro-batches bring, and needs nothing of an empty one."""
        return torch.zeros((), device=parameters[0].device)


class WeightsInPieces(WholeWeights):
    """Stage 3: a weight is whole only while a module that reads it computes.

    hooks: by which modules fetch and release their weights; there while an engine trains.
    """

    whole: bool = False

    def __init__(self) -> None:
        self.hooks: DeepSpeedZeRoOffload | None = None

    def begin(self, method: Method, hooks: DeepSpeedZeRoOffload) -> None:
        """Training begins. The head's weights are read beside their module, whose hooks do not see it.

        They are fetched with the method's own, for the whole of a micro-batch and again before its gradients.
        """
        self.hooks = hooks
        output = method.model.causal_lm.get_output_embeddings()
        assert isinstance(output, nn.Module)
        for parameter in output.parameters():
            register_external_parameter(method, parameter)

    def end(self) -> None:
        """The engine is gone, with its hooks."""
        self.hooks = None

    @contextmanager
    def gathered(self, module: nn.Module) -> Iterator[None]:
        with GatheredParameters([parameter for parameter in module.parameters() if not is_whole(parameter)]), self._unhooked():
            yield

    @contextmanager
    def passes(self, module: nn.Module) -> Iterator[None]:
        """Weights that are read beside their module are fetched inside the engine's forward alone: gather all of them once."""
        with self.gathered(module):
            yield

    @contextmanager
    def _unhooked(self) -> Iterator[None]:
        """Inside, modules neither fetch nor release."""
        hooks, self.hooks = self.hooks, None
        if hooks is not None:
            for hook in (*hooks.forward_hooks, *hooks.backward_hooks):
                hook.remove()
            hooks.forward_hooks, hooks.backward_hooks = [], []
        try:
            yield
        finally:
            if hooks is not None:
                hooks._register_deepspeed_module(hooks.module)
            self.hooks = hooks

    @contextmanager
    def editable(self, module: nn.Module) -> Iterator[None]:
        """Every weight stands for this rank's piece of it: weights of one shape are cut alike."""
        parameters: list[Any] = [parameter for parameter in module.parameters() if is_zero_param(parameter)]
        fetched = {parameter: set(parameter.ds_active_sub_modules) for parameter in parameters if is_whole(parameter)}
        if self.hooks is not None:
            self.hooks.partition_all_parameters()  # those on their way too
        for parameter in parameters:
            parameter.data = parameter.ds_tensor.data
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.data = parameter.data.new_empty(0)
            for parameter, readers in fetched.items():
                parameter.all_gather()
                parameter.ds_active_sub_modules.update(readers)

    def full_state_dict(self, module: nn.Module) -> dict[str, Tensor]:
        leads = torch.distributed.get_rank() == 0
        return dict(whole_tensors(module, lambda place: leads))

    def bit_sums(self, module: nn.Module) -> dict[str, int]:
        state, rank = module.state_dict(keep_vars=True), torch.distributed.get_rank()
        sums = torch.stack([bit_sum(_own_part(tensor, rank)).to(tensor.device) for tensor in state.values()])
        torch.distributed.all_reduce(sums)
        return dict(zip(state, sums.tolist(), strict=True))


def is_whole(parameter: Any) -> bool:
    """Whether this rank has all of a weight at this moment."""
    return not is_zero_param(parameter) or bool(parameter.ds_status == ZeroParamStatus.AVAILABLE)


def _own_part(tensor: Any, rank: int) -> Tensor:
    """This rank's elements of a tensor, the filling behind a weight's end left out; what is no weight counts once."""
    if is_zero_param(tensor):
        piece: Tensor = tensor.ds_tensor.data
        return piece[: max(0, min(len(piece), tensor.ds_numel - rank * len(piece)))]
    return tensor.detach().flatten()[: None if rank == 0 else 0]
