"""Losses that compare all pairs of an optimizer step, however the step is split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.distributed as dist
from torch import Tensor

from posttrain.methods.parts.collectives import gather
from posttrain.types import PairLogps


@dataclass(frozen=True)
class StepGradients:
    """Of each micro-batch of this rank: its losses [P], and the gradient of the step's summed loss in its log-probabilities.

    With them every micro-batch can be differentiated by itself and the gradients add up to that of the whole step (gradient caching,
    arXiv:2101.06983, section 3).
    """

    values: Sequence[Tensor]
    chosen: Sequence[Tensor]
    rejected: Sequence[Tensor]

    def losses(self, pairs: PairLogps, place: int) -> Tensor:
        """The losses [P] of micro-batch `place`, with their gradient in `pairs`."""
        slopes = self.chosen[place] * (pairs.chosen - pairs.chosen.detach()) + self.rejected[place] * (
            pairs.rejected - pairs.rejected.detach()
        )
        return self.values[place] + slopes


def step_gradients(loss: Callable[[PairLogps], Tensor], mine: Sequence[PairLogps]) -> StepGradients:
    """Evaluate `loss` on the pairs of all ranks' micro-batches together. mine: this rank's, in order."""
    device = mine[0].chosen.device
    sizes = [len(pairs.chosen) for pairs in mine]
    joined = _joined(mine)
    everybody = gather({name: value.cpu() for name, value in joined.items()})
    whole = {name: torch.cat([part[name] for part in everybody]).to(device) for name in joined}
    before = sum(len(part["chosen"]) for part in everybody[: _rank()])
    leaves = {name: whole[name].requires_grad_() for name in ("chosen", "rejected")}
    with torch.enable_grad():
        values = loss(replace(mine[0], **whole))
        slopes = torch.autograd.grad(values.sum(), list(leaves.values()))
    here = slice(before, before + sum(sizes))
    return StepGradients(*(part.detach()[here].split(sizes) for part in (values, *slopes)))


def _joined(mine: Sequence[PairLogps]) -> dict[str, Tensor]:
    """The columns [P] of several micro-batches' pairs, one after the other."""
    names = [field.name for field in fields(PairLogps) if field.name != "baseline" and getattr(mine[0], field.name) is not None]
    return {name: torch.cat([getattr(pairs, name).detach() for pairs in mine]) for name in names}


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
