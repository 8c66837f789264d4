"""Writes checkpoints at step ends, and stops there when asked to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from posttrain.runs import checkpoint
from posttrain.runs.callbacks.base import StepCallback
from posttrain.runs.files import prepare_folder, writing
from posttrain.runs.ranks import Ranks, barrier, sum_over_ranks
from posttrain.runs.reporter import Reporter
from posttrain.runs.signals import HANDLED, StopRequest

log = logging.getLogger(__name__)


class SignalsReturned(Callback):
    """First of all callbacks: Lightning has put a SIGTERM handler in front of ours, which would have ranks wait for each other."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop.install()


class CheckpointWriter(StepCallback):
    """Saves every `every_steps` steps, every `every_minutes` minutes, at the last step, and when a signal asks the run to stop.

    All ranks decide alike and save together; the leading rank makes the checkpoint complete with one rename. ends_at: see `StepPlan`.
    """

    def __init__(
        self,
        reporter: Reporter,
        stop: StopRequest,
        *,
        ranks: Ranks,
        ends_at: Callable[[int], Sequence[int]],
        every_steps: int | None,
        every_minutes: float | None,
        keep_last: int,
        keep_best: int,
        monitor: str,
    ) -> None:
        self.folder = reporter.output_dir / "checkpoints"
        self.reporter = reporter
        self.stop = stop
        self.ranks = ranks
        self.ends_at = ends_at
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.keep_last, self.keep_best, self.monitor = keep_last, keep_best, monitor
        self._saved_at = time.monotonic()
        self._told = not keep_best

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop.begin_steps()
        self._saved_at = time.monotonic()

    def on_step_end(self, trainer: Trainer, module: Any) -> None:
        stopping, overdue = self._asked(module.device)
        due = self.every_steps is not None and trainer.global_step % self.every_steps == 0
        if stopping or overdue or due or trainer.should_stop or trainer.global_step == trainer.max_steps:
            self.save(trainer)
        trainer.should_stop = trainer.should_stop or stopping

    def _asked(self, device: torch.device) -> tuple[bool, bool]:
        """Whether any rank was told to stop, and whether the leading rank's clock says it is time."""
        late = self.every_minutes is not None and time.monotonic() - self._saved_at >= 60 * self.every_minutes
        signals = {number.name: float(self.stop.signal == number) for number in HANDLED}
        votes = sum_over_ranks({**signals, "late": float(late and self.ranks.leads)}, device)
        return self.stop.agree([number for number in HANDLED if votes[number.name] > 0]), votes["late"] > 0

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint of this moment. Raises OSError that says what to do; earlier checkpoints stay."""
        step = trainer.global_step
        self.reporter.sync()
        if self.ranks.leads:
            prepare_folder(self.folder)
            checkpoint.clear_partial(self.folder)
            checkpoint.partial_path(self.folder, step).mkdir()
        barrier()
        try:
            with writing(self.folder):
                trainer.save_checkpoint(checkpoint.partial_path(self.folder, step) / checkpoint.STATE)
            barrier()
            if self.ranks.leads:
                score = checkpoint.best_score(self.reporter.values_at(step), self.monitor)
                checkpoint.complete(self.folder, step, score, self.ends_at(step))
        except OSError:
            if self.ranks.leads:
                checkpoint.clear_partial(self.folder)  # give back the space that the attempt took
            raise
        self._tell_if_unknown()
        if self.ranks.leads:
            checkpoint.prune(self.folder, last=self.keep_last, best=self.keep_best)
        self._saved_at = time.monotonic()

    def _tell_if_unknown(self) -> None:
        """Once, where something was measured on held-out data, but not what the best checkpoints are chosen by."""
        name, known = self.monitor.removeprefix("-"), self.reporter.latest
        measured = sorted(other for other in known if other.startswith(("val/", "eval/")))
        if measured and name not in known and not self._told:
            self._told = True
            log.warning("checkpoint.monitor=%s is never measured, so keep_best keeps nothing; there are %s", name, ", ".join(measured))
