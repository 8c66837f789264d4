"""What learning with a critic needs besides: rewards of tokens, a coefficient that follows the divergence, a rate of the head's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from posttrain.functional.gae import adapted, mean_and_variance, moments
from posttrain.methods.parts.passes import Columns
from posttrain.methods.parts.recipe import NamedParameters
from posttrain.types import Part, Rollout


@dataclass(frozen=True)
class Answers:
    """The S answers that a rollout's parts hold, one after the other, N tokens in all, on the CPU; floats are float64.

    score: [S]. ended: bool [S], False where an answer was cut off. lengths: int64 [S]. old, values, reference: [N], None for the last where
    no reference was asked.
    """

    score: Tensor
    ended: Tensor
    lengths: Tensor
    old: Tensor
    values: Tensor
    reference: Tensor | None


def answers_of(rollout: Rollout, parts: Sequence[Part], columns: Sequence[Columns]) -> Answers:
    """The answers in the order of the parts. columns: `old`, `values` and perhaps `reference` [T] of each part's tree."""
    which = [(part.group, answer) for part in parts for answer in part.answers]
    known = {name: _joined(parts, [some[name] for some in columns]) for name in (columns[0] if columns else ("old", "values"))}
    return Answers(
        torch.tensor([float(rollout.rewards.total[place]) for place in which], dtype=torch.float64),
        torch.tensor([rollout.groups[group].completions[answer].finish == "stop" for group, answer in which], dtype=torch.bool),
        torch.tensor([length for part in parts for length in part.tree.segment_lengths[1:].tolist()], dtype=torch.int64),
        known["old"],
        known["values"],
        known.get("reference"),
    )


def _joined(parts: Sequence[Part], columns: Sequence[np.ndarray]) -> Tensor:
    """The columns' values at the answers' tokens."""
    cut = [column[part.tree.segment_lengths[0] :] for part, column in zip(parts, columns, strict=True)]
    return torch.from_numpy(np.concatenate(cut or [np.zeros(0)]).astype(np.float64))


def as_columns(parts: Sequence[Part], values: Tensor) -> list[np.ndarray]:
    """Values [N] of all answers' tokens as a column [T] of each part's tree, 0 on the prompt."""
    whole, found = values.float().numpy(), []
    for part in parts:
        prompt, *lengths = part.tree.segment_lengths.tolist()
        own, whole = np.split(whole, [sum(lengths)])
        found.append(np.concatenate([np.zeros(prompt, np.float32), own]))
    return found


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 for a critic that knows everything, 0 for one that knows the mean, less for a worse one.

    0 where all returns are the same.
    """
    unit = torch.ones_like(values)
    _, _, left = mean_and_variance(moments(returns - values, unit))
    _, _, whole = mean_and_variance(moments(returns, unit))
    return 1 - left / whole if whole > 0 else 0.0


class Coefficient(nn.Module):
    """The coefficient of the pull towards the reference; with a target it follows the divergence that is measured, and is in checkpoints.

    value: in force for the present rollout. following: for the next one.
    target: nats an answer; None leaves it alone. rate: see `posttrain.functional.gae.adapted`.
    """

    value: Tensor
    following: Tensor

    def __init__(self, start: float, *, target: float | None, rate: float) -> None:
        super().__init__()
        self.target, self.rate = target, rate
        for name in ("value", "following"):
            self.register_buffer(name, torch.tensor(start, dtype=torch.float64), persistent=target is not None)

    def begin(self) -> None:
        """A rollout begins: what the last one set comes into force."""
        self.value.copy_(self.following)

    def follow(self, divergence: float) -> None:
        """Take in what a rollout's answers are away from the reference, nats an answer."""
        if self.target is not None:
            self.following.fill_(adapted(float(self.value), divergence, target=self.target, rate=self.rate))


def with_own_rate(make: Callable[[NamedParameters], Optimizer], named: NamedParameters, *, prefix: str, lr: float) -> Optimizer:
    """An optimizer that trains the parameters whose names begin with `prefix` at a learning rate of their own, in groups of their own."""
    optimizer = make([(name, parameter) for name, parameter in named if not name.startswith(prefix)])
    for group in make([(name, parameter) for name, parameter in named if name.startswith(prefix)]).param_groups:
        optimizer.add_param_group({**group, "lr": lr})
    return optimizer
