"""A checkpoint's place, counted in micro-batches, in another plan: other max_tokens or devices make another number of them a step."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Replanner(Callback):
    """Counts what a checkpoint says in micro-batches anew, before Lightning's loop and the loader read it.

    Checkpoints are written at the ends of steps, so their place is a number of steps, which both plans share.
    """

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        recount(checkpoint, int(trainer.accumulate_grad_batches))


def recount(checkpoint: dict[str, Any], micro_batches: int) -> None:
    """Set the places in a checkpoint, which is of a step's end, to those of a plan with `micro_batches` a step."""
    place, loop = checkpoint["global_step"] * micro_batches, checkpoint["loops"]["fit_loop"]
    for counts in (loop["epoch_loop.batch_progress"][kind] for kind in ("total", "current")):
        moved = place - counts["ready"]
        counts.update({name: count + moved for name, count in counts.items()})  # `completed` is counted after saving: one behind
    for loader in loop["state_dict"]["combined_loader"]:
        loader["given"] = place
