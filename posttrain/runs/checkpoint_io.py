"""How Lightning's checkpoint files are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from posttrain.runs import shards


class StreamingCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint straight to its file: Lightning's own first builds the whole file in memory, which doubles a run's peak.

    Completeness is the caller's: a checkpoint's folder gets its final name only when every file in it is durable.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Raises OSError where the file cannot be written in full, TypeError for storage options."""
        if storage_options is not None:
            raise TypeError("checkpoints of a run are local files and take no storage options")
        try:
            with open(path, "wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:
            # torch closes its archive on the way out of a failed write, and complains of the archive instead of the disk
            cause = error.__context__
            if isinstance(cause, OSError):
                raise cause from error
            raise

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Also of one in shards, which a run with sharded weights has written."""
        if shards.is_sharded(Path(path)):
            return shards.load_whole(Path(path))
        loaded: dict[str, Any] = super().load_checkpoint(path, map_location=map_location, weights_only=weights_only)
        return loaded
