"""Weights sharded over the ranks with PyTorch's fully_shard (FSDP2).

Each decoder layer is a unit that is gathered for its forward and backward pass and let go in between; what surrounds the layers
(embedding, last norm, output head, which may be tied) is a unit that stays gathered from the first layer to the end of the backward
pass, since the head's weight is read outside the model's own forward. Heads beside the policy are units of their own. Within a unit
frozen and trained weights may be mixed: they are sharded one by one, and only trained ones have gradients to reduce.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from posttrain.models.policy import PolicyModel
from posttrain.models.sharding import bit_sum

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

FORWARDS = ("hidden", "stats", "begin")  # of a policy, besides `forward`


class FullySharded:
    """Shards along `mesh`, which exists once the processes do.

    layer_dtype: what layers' weights are gathered and computed in, None for their own; gradients are reduced in float32 then. What
    surrounds the layers keeps its own, and so does the stream between them, as under autocast with whole weights. offload: keep shards,
    their gradients and the optimizer's state in host memory.
    """

    whole = False

    def __init__(self, mesh: Callable[[], DeviceMesh], *, layer_dtype: torch.dtype | None = None, offload: bool = False) -> None:
        self.mesh, self.offload = mesh, offload
        reduced = None if layer_dtype is None else torch.float32
        self.layer_precision = MixedPrecisionPolicy(param_dtype=layer_dtype, reduce_dtype=reduced, cast_forward_inputs=False)
        self.reshards: set[nn.Module] = set()

    def shard(self, module: nn.Module) -> None:
        policies = [part for part in module.modules() if isinstance(part, PolicyModel)]
        for policy in policies:
            self._shard_policy(policy)
        for child in module.children():
            if not any(policy in set(child.modules()) for policy in policies) and any(True for _ in child.parameters()):
                self._unit(child, MixedPrecisionPolicy(cast_forward_inputs=False), reshard=None)

    def _shard_policy(self, policy: PolicyModel) -> None:
        trained = any(parameter.requires_grad for parameter in policy.parameters())
        layers = policy.causal_lm.base_model.layers
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            self._unit(layer, self.layer_precision, reshard=True)
            self.reshards.add(layer)
        # one that is never trained has no backward pass that would let its surroundings go
        self._unit(policy, MixedPrecisionPolicy(cast_forward_inputs=False), reshard=None if trained else True)
        if trained:
            _prefetch_in_order(policy, layers)
        else:
            self.reshards.add(policy)
        policy.begin = MethodType(_begin, policy)  # type: ignore[assignment]
        for name in FORWARDS:
            register_fsdp_forward_method(policy, name)
        # true for a policy's states, which nothing changes in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning)

    def _unit(self, module: nn.Module, precision: MixedPrecisionPolicy, *, reshard: bool | None) -> None:
        policy = CPUOffloadPolicy() if self.offload else OffloadPolicy()
        fully_shard(module, mesh=self.mesh(), reshard_after_forward=reshard, mp_policy=precision, offload_policy=policy)
        assert isinstance(module, FSDPModule)
        module.set_reduce_scatter_unused_params(True, recurse=False)  # experts that no token of this rank was sent to

    def place(self, module: nn.Module, device: torch.device) -> None:
        """Nothing to do: shards stay where they are."""

    @contextmanager
    def gathered(self, module: nn.Module) -> Iterator[None]:
        units = units_of(module)
        try:
            for unit in units:
                if isinstance(unit, PolicyModel):
                    unit.begin()  # type: ignore[operator]
                unit.unshard()
                unit.set_reshard_after_forward(False, recurse=False)
            yield
        finally:
            for unit in units:
                if unit in self.reshards:
                    unit.set_reshard_after_forward(True, recurse=False)
                unit.reshard()

    @contextmanager
    def passes(self, module: nn.Module) -> Iterator[None]:
        """Units are gathered by their own hooks, wherever they run."""
        yield

    @contextmanager
    def editable(self, module: nn.Module) -> Iterator[None]:
        """Shards are changed where they lie."""
        for unit in units_of(module):
            unit.reshard()
        yield

    def full_state_dict(self, module: nn.Module) -> dict[str, Tensor]:
        for unit in units_of(module):
            unit.reshard()
        leads = self.mesh().get_rank() == 0
        state: dict[str, Tensor] = {}
        for name, tensor in module.state_dict().items():
            whole: Any = tensor
            if isinstance(tensor, DTensor):
                whole = tensor.detach().to(self.mesh().device_type)  # where it can be exchanged
                whole = whole.full_tensor()
            if leads:
                state[name] = whole.detach().cpu()
        return state

    def bit_sums(self, module: nn.Module) -> dict[str, int]:
        for unit in units_of(module):
            unit.reshard()
        state, leads = module.state_dict(), self.mesh().get_rank() == 0
        parts = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in state.values()]
        sums = torch.stack([bit_sum(part).to(self.mesh().device_type) for part in parts])
        if not leads:  # what is no shard is the same everywhere, and counts once
            sums *= torch.tensor([isinstance(tensor, DTensor) for tensor in state.values()], device=sums.device)
        dist.all_reduce(sums, group=self.mesh().get_group())
        return dict(zip(state, sums.tolist(), strict=True))

    def clip_gradients(self, parameters: Sequence[nn.Parameter], limit: float) -> float:
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        nn.utils.clip_grads_with_norm_(parameters, limit, whole)
        return float(whole)

    def idle_loss(self, parameters: Sequence[nn.Parameter], *, last: bool) -> Tensor:
        """Ranks meet in the layers' own passes, and a micro-batch without one needs no meeting."""
        return torch.zeros((), device=self.mesh().device_type, requires_grad=True)


def _prefetch_in_order(policy: nn.Module, layers: nn.ModuleList) -> None:
    """Have each unit gather, during its backward pass, the one that comes next.

    By itself FSDP2 takes what ran before in forward passes since the last backward one, those of sampling included: a rank that had nothing
    to sample would gather other units than the rest, which wait for it for ever.
    """
    units = [policy, *layers]
    for unit, following in zip(units, [units[-1], *units[:-1]], strict=True):
        assert isinstance(unit, FSDPModule)
        assert isinstance(following, FSDPModule)
        unit.set_modules_to_backward_prefetch([following])


def _begin(policy: PolicyModel) -> None:
    """A forward pass of nothing. It must come before one of a layer by itself: the first to run takes itself for the outermost unit."""


def units_of(module: nn.Module) -> list[FSDPModule]:
    """The parts of a module that are gathered by themselves."""
    return [part for part in module.modules() if isinstance(part, FSDPModule)]
