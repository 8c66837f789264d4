"""Operations and seconds of a step and of the run."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.runs.planning.rates import Rates
from posttrain.runs.planning.shapes import ModelShape
from posttrain.runs.planning.workload import Workload


@dataclass(frozen=True)
class Duration:
    """training, sampling: operations of a step over all devices. seconds: of a step; None without rates. steps: None where unknown."""

    training: float
    sampling: float
    seconds: float | None
    steps: float | None
    devices: int

    @property
    def flops(self) -> float:
        """Of a step."""
        return self.training + self.sampling

    @property
    def hours(self) -> float | None:
        """Of the run."""
        return None if self.seconds is None or self.steps is None else self.seconds * self.steps / 3600


def duration_of(
    model: ModelShape, work: Workload, rates: Rates | None, *, forwards: float, passes: float, per_rollout: int, heads: bool, devices: int,
    checkpointing: bool, element: int,
) -> Duration:  # fmt: skip
    """forwards: passes of a reference over what is trained on. passes: over all sampled answers between steps. per_rollout: optimizer steps
    that a rollout serves. heads: whether the output head is used. element: bytes of a weight while sampling."""
    targets = work.targets if heads else 0.0
    amounts = {"tokens": work.tokens, "targets": targets, "pairs": work.pairs}
    forward = model.flops.forward(**amounts)
    again = forward - 2 * model.flops.head * targets if checkpointing else 0.0
    rows = work.micro_batches * devices
    twice = rows * model.flops.again(round(targets / rows))
    training = model.flops.training(**amounts, again=twice) + (forwards + passes / per_rollout) * forward + again
    sampling = forward / per_rollout if work.sampling is not None else 0.0
    return Duration(
        training, sampling, _seconds(model, work, rates, training, sampling, per_rollout, devices, element), work.steps, devices
    )


def _seconds(
    model: ModelShape, work: Workload, rates: Rates | None, training: float, sampling: float, per_rollout: int, devices: int, element: int
) -> float | None:
    """Training at the rate of matrix products; sampling at that of decoding, or at that of reading all weights and going through all
    layers once a token."""
    if rates is None:
        return None
    found = training / devices / rates.flops
    if work.sampling is not None:
        waves = max(1.0, work.sampling.prompts * work.sampling.group / max(work.sampling.rows, 1)) if work.sampling.cache else 1.0
        read = element * (model.flops.weights + model.flops.head) / rates.bandwidth + len(model.attentions) * rates.layer
        found += max(sampling / devices / rates.decoding, waves * work.sampling.answer * read / per_rollout)
    return found
