"""Linear layers of the blocks cut over devices that compute one micro-batch together, then all weights over the data-parallel ranks.

Which layers are cut, and how, is the plan that transformers gives a family, `base_model_tp_plan` (Megatron-LM, arXiv:1909.08053, sec. 3):
projections into heads and into the inner width by their outputs, projections out of them by their inputs, whose results are summed. What is
in no plan (embedding, norms of the stream, output head) computes the same on every rank of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, SequenceParallel, parallelize_module
from transformers import PreTrainedModel

from posttrain.models.fsdp2 import FullySharded, units_of
from posttrain.models.policy import PolicyModel
from posttrain.models.sharding import bit_sum

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PretrainedConfig

HEADS = 2  # the dimension of [B, L, heads, head_dim] that a norm of heads sees cut
STYLES: Mapping[str, Callable[[], ParallelStyle]] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    "replicated_with_grad_allreduce": lambda: SequenceParallel(sequence_dim=HEADS, use_local_output=True),
}

# whose losses and gradient norms were seen to be those of one device
FAMILIES = frozenset({"gemma2", "gemma3_text", "granite", "llama", "mistral", "qwen2", "qwen3", "smollm3"})


def obstacle(config: PretrainedConfig, together: int) -> str | None:
    """Why a model's layers cannot be cut over this many devices; None if they can."""
    if config.model_type not in FAMILIES:
        return f"the layers of {config.model_type} are not known to compute the same in parts; those of {', '.join(sorted(FAMILIES))} are"
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if (size := getattr(config, name)) % together:
            return f"{together} devices cannot share the model's {name}, {size}, equally"
    return None


class TensorParallel(FullySharded):
    """Cuts along the dimension `tensor_parallel` of a mesh, then along `data_parallel`."""

    def __init__(self, mesh: Callable[[], DeviceMesh], *, layer_dtype: torch.dtype | None = None) -> None:
        super().__init__(lambda: mesh()["data_parallel"], layer_dtype=layer_dtype)
        self.whole_mesh = mesh

    def _shard_policy(self, policy: PolicyModel) -> None:
        body = policy.causal_lm.base_model
        assert isinstance(body, PreTrainedModel)
        plan = {name: STYLES[style]() for name, style in (body.config.base_model_tp_plan or {}).items()}
        parallelize_module(body, self.whole_mesh()["tensor_parallel"], plan)
        super()._shard_policy(policy)

    def bit_sums(self, module: nn.Module) -> dict[str, int]:
        for unit in units_of(module):
            unit.reshard()
        state = module.state_dict()
        parts = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in state.values()]
        counted = [
            bit_sum(part).to(self.mesh().device_type) * self._counts(whole) for part, whole in zip(parts, state.values(), strict=True)
        ]
        sums = torch.stack(counted)
        dist.all_reduce(sums)
        return dict(zip(state, sums.tolist(), strict=True))

    def _counts(self, tensor: Tensor) -> int:
        """1 on one of the ranks that hold the same part of a tensor, 0 on its twins."""
        mesh = self.whole_mesh()
        names = mesh.mesh_dim_names or ()
        cut: set[str] = set()
        if isinstance(tensor, DTensor):
            own = tensor.device_mesh.mesh_dim_names or ()
            cut = {name for name, placement in zip(own, tensor.placements, strict=True) if not placement.is_replicate()}
        return int(all(mesh.get_local_rank(name) == 0 for name in names if name not in cut))

    def clip_gradients(self, parameters: Sequence[nn.Parameter], limit: float) -> float:
        """By mesh: one norm cannot be taken of tensors that lie on different ones."""
        groups: dict[DeviceMesh, list[nn.Parameter]] = {}
        for parameter in parameters:
            if isinstance(parameter.grad, DTensor):
                groups.setdefault(parameter.grad.device_mesh, []).append(parameter)
        norms = [_whole(nn.utils.get_total_norm([p.grad for p in group if p.grad is not None])) for group in groups.values()]
        norm = torch.stack(norms).norm()
        for group in groups.values():
            nn.utils.clip_grads_with_norm_(group, limit, norm)
        return float(norm)


def _whole(norm: Tensor) -> Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
