"""A callback at the ends of optimizer steps."""

from __future__ import annotations

from abc import ABC
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StepCallback(Callback, ABC):
    """Calls `on_step_end` after the last micro-batch of every optimizer step, on all ranks."""

    def on_step_end(self, trainer: Trainer, module: Any) -> None:
        """The optimizer has stepped; `trainer.global_step` counts it."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.on_step_end(trainer, pl_module)
