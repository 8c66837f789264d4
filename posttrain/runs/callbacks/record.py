"""Seeds every micro-batch, and writes a line of metrics for every step."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from posttrain.methods.base import Method
from posttrain.methods.parts.recipe import Steps
from posttrain.runs.callbacks.base import StepCallback
from posttrain.runs.ranks import Ranks, sum_over_ranks
from posttrain.runs.reporter import Reporter
from posttrain.types import Work

COUNTED = ("examples", "tokens", "generated")


class StepRecorder(StepCallback):
    """One line a step: loss and the method's metrics over the whole step, gradient norm, learning rate, tokens and examples so far.

    flops: operations that were spent on the model before training; `totals` holds them and those of the steps. Its device_seconds are this
    rank's seconds times the number of ranks: their mean over ranks is the sum of seconds, also where a run goes on with other ranks.

    Random numbers are seeded from (seed, step, micro-batch, rank), so a resumed run draws what the uninterrupted one would have drawn.
    """

    def __init__(
        self, reporter: Reporter, steps: Steps, *, last: int, seed: int, ranks: Ranks, every_steps: int = 1, flops: float = 0.0
    ) -> None:
        self.reporter = reporter
        self.steps = steps
        self.last = last
        self.seed = seed
        self.ranks = ranks
        self.every_steps = every_steps
        self.totals = dict.fromkeys((*COUNTED, "train_seconds", "device_seconds", "flops", "flops_before"), 0.0)
        self.flops = flops
        self._lr = 0.0
        self._began = 0.0

    def state_dict(self) -> dict[str, Any]:
        return dict(self.totals)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.totals.update(state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.totals["flops_before"] = self.flops
        self._began = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(micro_seed(self.seed, batch_idx, self.ranks))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._lr = float(optimizer.param_groups[0]["lr"])

    def on_step_end(self, trainer: Trainer, module: Method) -> None:
        step = trainer.global_step
        work = self._count(step, module)
        sums = self._summed(module.pop_sums(), module)
        self._stop_if_lost(step, sums.get("loss", 0.0), module.grad_norm)
        module.after_step(sums)
        self.totals["train_seconds"] += (seconds := time.perf_counter() - self._began)
        self.totals["device_seconds"] += seconds * self.ranks.world
        notes, phases = self.steps.notes(step - 1), self.steps.pop_seconds()
        if step % self.every_steps == 0 or step == self.last or notes:
            counts = {name: self.totals[name] for name in COUNTED if name != "generated" or module.online}
            metrics = {**module.step_metrics(sums), **notes, "grad_norm": module.grad_norm, "lr": self._lr, **counts}
            self.reporter.step(step, metrics, tokens=work.tokens, seconds=seconds, speeds=_speeds(work, phases))
        self._began = time.perf_counter()

    def _summed(self, values: Mapping[str, Any], module: LightningModule) -> dict[str, float]:
        return sum_over_ranks(values, module.device, together=self.ranks.together)

    def _count(self, step: int, module: Method) -> Work:
        """Add a step's work to the totals."""
        work = Work() if module.idle else self.steps.work(step - 1)
        for name in COUNTED:
            self.totals[name] += getattr(work, name)
        self.totals["flops"] += module.flops(work)
        return work

    def _stop_if_lost(self, step: int, loss: float, grad_norm: float) -> None:
        """Raises FloatingPointError where the step has made the weights useless."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            message = f"step {step}: the loss is {loss:g}, the gradient norm {grad_norm:g}: the weights are lost"
            raise FloatingPointError(f"{message}. Lower optimizer.lr, or look at the data; the last checkpoint is from before")

    def resume_clock(self) -> None:
        """Leave out the time since the last step: evaluation and checkpoints are not training."""
        self._began = time.perf_counter()


def _speeds(work: Work, phases: Mapping[str, float]) -> dict[str, float]:
    """Seconds of what happened before the step, and how fast answers were sampled."""
    seconds = {f"seconds/{name}": value for name, value in phases.items()}
    sampled = phases.get("generate", 0.0)
    return {**seconds, **({"generate_tokens_per_second": work.generated / sampled} if sampled > 0 else {})}


def micro_seed(seed: int, batch_idx: int, ranks: Ranks) -> int:
    """A 63-bit seed of its own for every (seed, micro-batch of the run, rank)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + batch_idx * 0xBF58476D1CE4E5B9 + ranks.member * 0x94D049BB133111EB) & (2**64 - 1)
    mixed ^= mixed >> 31
    return (mixed * 0xD6E8FEB86659FD93 & (2**64 - 1)) >> 1
