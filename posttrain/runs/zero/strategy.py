"""Lightning's DeepSpeed strategy with this project's checkpoints and precision, on CUDA and on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from deepspeed import DeepSpeedEngine, ops
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from posttrain.methods.base import Method
from posttrain.runs import shards
from posttrain.runs.zero.pieces import optimizer_part, restore_optimizer, whole_tensors
from posttrain.runs.zero.precision import ZeroPrecision, pass_over_zero_gradients
from posttrain.runs.zero.sharding import WeightsInPieces, WholeWeights


class ZeroStrategy(DeepSpeedStrategy):
    """The engine wraps a method whose weights are built whole on every rank, and cuts them itself.

    A checkpoint has the content it has without ZeRO. Every rank writes some of its tensors, whole, so that any number of ranks, under any
    strategy, can go on from it.
    """

    def __init__(self, settings: dict[str, Any], sharding: WholeWeights, *, process_group_backend: str, timeout: timedelta) -> None:
        super().__init__(config=settings, process_group_backend=process_group_backend, timeout=timeout)
        self.sharding = sharding
        self.groups: list[list[nn.Parameter]] = []
        self.saved: shards.Stored | None = None  # the checkpoint that is being loaded

    @property
    def precision_plugin(self) -> Precision:
        return self._zero_precision

    @precision_plugin.setter
    def precision_plugin(self, plugin: Precision | None) -> None:
        precision = plugin.precision if isinstance(plugin, DeepSpeedPrecision) else "32-true"
        self._zero_precision = ZeroPrecision(autocast=precision == "bf16-mixed")

    def setup_environment(self) -> None:
        DDPStrategy.setup_environment(self)  # DeepSpeed's own refuses a CPU

    def setup_distributed(self) -> None:
        if self.root_device.type == "cuda":
            super().setup_distributed()
            return
        ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo does what it would, and needs no compiler
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self) -> torch.device:
        device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device  # DeepSpeed wants the index

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Weights are made and loaded whole."""
        yield

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        """Weights are made and loaded whole."""
        yield

    def _setup_model_and_optimizer(
        self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: LRScheduler | None = None
    ) -> tuple[DeepSpeedEngine, Optimizer]:
        assert optimizer is not None
        self.groups = [list(group["params"]) for group in optimizer.param_groups if group["params"]]
        engine, zero = super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)
        pass_over_zero_gradients(zero)
        if isinstance(self.sharding, WeightsInPieces):
            assert isinstance(model, Method)
            self.sharding.begin(model, engine.optimizer.parameter_offload)
        return engine, zero

    def teardown(self) -> None:
        """Let go of the engine and its optimizer states; pieces of weights stay where they are."""
        if isinstance(self.model, DeepSpeedEngine):
            self.model.destroy()
            self.model = self.lightning_module
        if isinstance(self.sharding, WeightsInPieces):
            self.sharding.end()
        self.optimizers, self.groups = [], []
        super().teardown()

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """The engine cuts the weights of the checkpoint, and gets the optimizer's states afterwards."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def _mine(self, place: int) -> bool:
        return place % self.world_size == self.global_rank

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        """This rank's share of the whole weights that a checkpoint holds."""
        module = self.lightning_module
        assert isinstance(module, Method)
        frozen = any(not parameter.requires_grad for parameter in module.parameters())
        return dict(whole_tensors(module, self._mine, module.saved_names() if frozen else None))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """This rank's share of the whole states."""
        return optimizer_part(optimizer, self.groups, self._mine)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Raises OSError where a rank cannot write, TypeError for storage options."""
        if storage_options is not None:
            raise TypeError("checkpoints of a run are local files and take no storage options")
        shards.save(checkpoint, Path(filepath), leads=self.is_global_zero)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Without the optimizers' tensors, which are read one by one when there is an engine to put them into."""
        self.saved = shards.Stored(Path(checkpoint_path))
        return self.saved.without_moments()

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        assert self.saved is not None
        (state,) = checkpoint["optimizer_states"]
        restore_optimizer(self.optimizers[0], self.groups, state, self.saved.moments)
        self.saved = None
