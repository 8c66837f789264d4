"""Stops a run at its budget where the work of a step is known only when it is done: sampled answers, or seconds."""

from __future__ import annotations

from collections import deque
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from posttrain.errors import ConfigError, Problem, after_start
from posttrain.methods.base import Method
from posttrain.runs.budget.amount import Budget, overspent, too_small
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
            mine = {"seconds": self.recorder.totals["device_seconds"]}
            self.seconds = sum_over_ranks(mine, module.device, together=1)["seconds"] / self.ranks.world

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

    The next step is taken to cost what the step one rollout before it did; the first ones after a run got a budget of this unit, what its
    mean step did. per_rollout: optimizer steps of a rollout.
    """

    def __init__(self, meter: Meter, *, per_rollout: int = 1) -> None:
        self.meter = meter
        self.costs: deque[float] = deque(maxlen=per_rollout)
        self._before, self._began_with_it = 0.0, False

    @property
    def _budget(self) -> list[Any]:
        """As it stands in checkpoints."""
        return [self.meter.budget.unit, self.meter.budget.amount]

    def state_dict(self) -> dict[str, Any]:
        return {"costs": list(self.costs), "budget": self._budget}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before = state_dict.get("budget", [None])
        self._began_with_it = before == self._budget
        if before[0] == self.meter.budget.unit:
            self.costs.extend(state_dict["costs"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises ConfigError where a run that goes on does not say what it has spent, or has spent more than the budget."""
        assert isinstance(pl_module, Method)
        pl_module.spent = lambda: self.meter.share
        self.meter.measure(pl_module)
        self._before = self.meter.spent
        if trainer.global_step > 0:
            self._go_on(trainer.global_step)
        trainer.should_stop = trainer.should_stop or self._reached(trainer.global_step)

    def _go_on(self, step: int) -> None:
        """Of a run that began without this budget: its mean step for what the next one will cost, if it has something left to spend."""
        totals, budget = self.meter.recorder.totals, self.meter.budget
        if budget.unit == "gpu_seconds" and totals["train_seconds"] > 0 and not totals["device_seconds"]:
            message = "the checkpoint that the run goes on from does not say the seconds of its devices"
            raise ConfigError(Problem(budget.key, message, "another unit, or resume=never"))
        if not self.costs:
            self.costs.append((self.meter.spent - self.meter.entered) / step)
        if not self._began_with_it and self.meter.spent - self.costs[0] / 2 > budget.amount:
            raise ConfigError(overspent(budget, step, by=f"has spent {self.meter.spent:.6g}"))

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
