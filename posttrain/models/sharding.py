"""How a method's weights lie over the ranks, and how to get at them whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class Sharding(Protocol):
    """What a method and a run ask of a strategy that may keep a part of the weights on each rank.

    Every call is made on every rank, in the same order, with the same module: the method; its policy alone may be gathered, too.
    """

    @property
    def whole(self) -> bool:
        """Whether every rank holds whole weights at all times."""
        ...

    def shard(self, module: nn.Module) -> None:
        """Called once, when the policy and all that stands beside it (heads, a frozen reference) are built, with whole weights on the CPU.

        A strategy that shards later, when it wraps the module, does nothing here.
        """
        ...

    def place(self, module: nn.Module, device: torch.device) -> None:
        """Put the module back where it computes, after the training loop has let go of it."""
        ...

    def gathered(self, module: nn.Module) -> AbstractContextManager[None]:
        """Inside, every rank holds whole weights: it may read them, and run the model as often as it likes, without a collective.

        For work that is not alike on every rank: sampling, evaluation. No gradients. Weights may be rounded to what training computes in.
        """
        ...

    def passes(self, module: nn.Module) -> AbstractContextManager[None]:
        """Inside, forward passes may be run between steps, as many on every rank."""
        ...

    def editable(self, module: nn.Module) -> AbstractContextManager[None]:
        """Inside, weights may be changed in place, element by element (`lerp_` towards another weight), alike on every rank."""
        ...

    def full_state_dict(self, module: nn.Module) -> dict[str, Tensor]:
        """The module's state dict as it is trained, unrounded: whole, on the CPU, on the leading rank; empty on the others."""
        ...

    def bit_sums(self, module: nn.Module) -> dict[str, int]:
        """`bit_sum` of each tensor of the module's state dict, added up over the parts as they lie on the ranks; on every rank."""
        ...

    def clip_gradients(self, parameters: Sequence[nn.Parameter], limit: float) -> float:
        """Scale gradients down to a global norm of at most `limit` (inf: measure alone); the norm before, over all ranks' parts."""
        ...

    def idle_loss(self, parameters: Sequence[nn.Parameter], *, last: bool) -> Tensor:
        """A loss without a gradient, for a micro-batch that every rank leaves out. parameters: trained. last: of its optimizer step."""
        ...


class Replicated:
    """Whole weights on every rank: one device, or data parallel."""

    whole = True

    def shard(self, module: nn.Module) -> None:
        """Nothing to do."""

    def place(self, module: nn.Module, device: torch.device) -> None:
        module.to(device)

    @contextmanager
    def gathered(self, module: nn.Module) -> Iterator[None]:
        yield

    @contextmanager
    def passes(self, module: nn.Module) -> Iterator[None]:
        yield

    @contextmanager
    def editable(self, module: nn.Module) -> Iterator[None]:
        yield

    def full_state_dict(self, module: nn.Module) -> dict[str, Tensor]:
        """The live tensors."""
        return module.state_dict()

    def bit_sums(self, module: nn.Module) -> dict[str, int]:
        return {name: int(bit_sum(tensor)) for name, tensor in module.state_dict().items()}

    def clip_gradients(self, parameters: Sequence[nn.Parameter], limit: float) -> float:
        return float(nn.utils.clip_grad_norm_(parameters, limit))

    def idle_loss(self, parameters: Sequence[nn.Parameter], *, last: bool) -> Tensor:
        """A step's last micro-batch touches every weight, since that is where data-parallel ranks meet."""
        touched = parameters if last else parameters[:1]
        return 0.0 * torch.stack([parameter.flatten()[:1].float() for parameter in touched]).sum()


def bit_sum(tensor: Tensor) -> Tensor:
    """Sum of a tensor's elements, their bits read as integers, modulo 2^64: int64 []. Those of a tensor's parts add up to its own."""
    bits = tensor.detach().contiguous().view(-1).view(INTEGERS[tensor.element_size()])
    return bits.sum(dtype=torch.int64)
