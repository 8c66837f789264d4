"""Evaluates the policy before training and every so many steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from posttrain.methods.base import Method
from posttrain.runs.callbacks.base import StepCallback
from posttrain.runs.callbacks.record import StepRecorder
from posttrain.runs.reporter import Reporter

Measure = Callable[[Method], Mapping[str, float]]


class Evaluator(StepCallback):
    """before: measured once, at step 0. during: measured every `every_steps` steps. None: not measured.

    keep: told the step after each measurement, to keep the scores of single examples.
    """

    def __init__(
        self,
        reporter: Reporter,
        recorder: StepRecorder,
        *,
        before: Measure | None,
        during: Measure | None,
        every_steps: int | None,
        keep: Callable[[int], None],
    ) -> None:
        self.reporter = reporter
        self.recorder = recorder
        self.before = before
        self.during = during
        self.every_steps = every_steps
        self.keep = keep

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0 and self.before is not None:
            self._measure(self.before, 0, pl_module)

    def on_step_end(self, trainer: Trainer, module: Any) -> None:
        step = trainer.global_step
        if self.during is None or self.every_steps is None or trainer.should_stop:  # what ends now is measured at its end
            return
        if step % self.every_steps == 0 and step < trainer.max_steps:
            self._measure(self.during, step, module)

    def _measure(self, measure: Measure, step: int, module: Any) -> None:
        training = module.training
        module.eval()
        self.reporter.values(step, measure(module))
        self.keep(step)
        module.train(training)
        self.recorder.resume_clock()
