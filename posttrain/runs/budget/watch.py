"""Stops a run at its budget where the work of a step is known only when it is done: sampled answers, or seconds."""

from __future__ import annotations

from collections import deque
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from posttrain.errors import ConfigError, after_start
from posttrain.methods.base import Method
from posttrain.runs.budget.amount import Budget, too_small
from posttrain.runs.callbacks.base import StepCallback
from posttrain.runs.callbacks.record import StepRecorder
from posttrain.runs.ranks import Ranks, sum_over_ranks


class Meter:
    """What a run has spent, of what its recorder counted; the same on all ranks. seconds: over all devices.

    entered: what the run that it starts from is charged.
    """

    def __init__(self, budget: Budget, recorder: StepRecorder, ranks: Ranks, *, entered: float = 0.0) -> None:
        self.budget, self.recorder, self.ranks, self.entered = budget, recorder, ranks, entered
        self.seconds = 0.0

    def measure(self, module: LightningModule) -> None:
        """Ask all ranks for their seconds, where these are what counts; all take part."""
        if self.budget.unit == "gpu_seconds":
            mine = {"seconds": self.recorder.totals["train_seconds"]}
            self.seconds = sum_over_ranks(mine, module.device, together=1)["seconds"]

    @property
    def spent(self) -> float:
        """In the budget's unit, with what the run that it starts from is charged."""
        totals = self.recorder.totals
        own = {"flops": totals["flops_before"] + totals["flops"], "tokens": totals["tokens"], "gpu_seconds": self.seconds}
        return self.entered + own[self.budget.unit]

    @property
    def share(self) -> float:
        """Of what the budget leaves to this run, in [0, 1]: its schedule begins at 0."""
        return min(1.0, (self.spent - self.entered) / (self.budget.amount - self.entered))


class BudgetWatch(StepCallback):
    """Behind the recorder: stops at the step boundary that is nearest to the budget, and lets the schedule follow what is spent.

    The next step is taken to cost what the step one rollout before it did. per_rollout: optimizer steps of a rollout.
    """

    def __init__(self, meter: Meter, *, per_rollout: int = 1) -> None:
        self.meter = meter
        self.costs: deque[float] = deque(maxlen=per_rollout)
        self._before = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"costs": list(self.costs), "seconds": self.meter.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.costs.extend(state_dict["costs"])
        self.meter.seconds = state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Method)
        pl_module.spent = lambda: self.meter.share
        self._before = self.meter.spent
        trainer.should_stop = trainer.should_stop or self._reached(trainer.global_step)

    def on_step_end(self, trainer: Trainer, module: Any) -> None:
        self.meter.measure(module)
        spent = self.meter.spent
        if trainer.global_step == 1 and spent > self.meter.budget.amount:
            with after_start():
                raise ConfigError(too_small(self.meter.budget, spent))
        self.costs.append(spent - self._before)
        self._before = spent
        module.set_rates()
        trainer.should_stop = trainer.should_stop or self._reached(trainer.global_step)

    def _reached(self, step: int) -> bool:
        """Whether this boundary is nearer to the budget than the next one will be."""
        return step > 0 and self.meter.spent + self.costs[0] / 2 >= self.meter.budget.amount
