"""Lightning's strategy for sharded weights, with checkpoints of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.optim import Optimizer

from posttrain.runs import shards


class ShardedStrategy(ModelParallelStrategy):
    """Every rank writes its own shards into a checkpoint, and reads what it needs of one, whatever number of ranks has written it.

    A checkpoint has the content it has without shards, so that it can be read where there are none, and the other way round. Weights that
    a method leaves out are in it as little as elsewhere. offload: whether the shards lie in host memory.
    """

    lightning_restore_optimizer = True

    def __init__(self, *, offload: bool, **common: Any) -> None:
        super().__init__(**common)
        self.offload = offload

    def model_to_device(self) -> None:
        """With offload the shards stay in host memory, and only what is no weight goes to the device."""
        assert self.lightning_module is not None
        if not self.offload:
            super().model_to_device()
            return
        for buffer in self.lightning_module.buffers():
            buffer.data = buffer.data.to(self.root_device)
        self.lightning_module._device = self.root_device  # what `LightningModule.to` sets, without moving the shards

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return optimizer.state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None) -> None:
        """Raises OSError where a rank cannot write, TypeError for storage options."""
        if storage_options is not None:
            raise TypeError("checkpoints of a run are local files and take no storage options")
        shards.save(checkpoint, Path(filepath), leads=self.is_global_zero)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        assert self.lightning_module is not None
        live = shards.Live(self.lightning_module.state_dict(), [shards.parameters(optimizer) for optimizer in self.optimizers])
        return shards.load(Path(checkpoint_path), live)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)
