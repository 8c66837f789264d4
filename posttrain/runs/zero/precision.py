"""How a DeepSpeed engine runs a micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from deepspeed import DeepSpeedEngine
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from torch import Tensor, nn
from torch.optim import Optimizer

from posttrain.methods.base import Method


class ZeroPrecision(DeepSpeedPrecision):
    """Weights stay as they were built, and DeepSpeed is not told of another precision than theirs.

    autocast: compute in bfloat16 on float32 weights, as without DeepSpeed.
    """

    def __init__(self, *, autocast: bool) -> None:
        super().__init__("32-true")
        self.autocast = autocast
        self.device_type = "cpu"

    def convert_module(self, module: nn.Module) -> nn.Module:
        self.device_type = "cuda" if torch.cuda.is_available() else "cpu"
        return module

    def convert_input(self, data: Any) -> Any:
        return data

    def forward_context(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device_type, torch.bfloat16, enabled=self.autocast, cache_enabled=not self.autocast)

    def backward(self, tensor: Tensor, model: LightningModule, optimizer: Any, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Nothing is done for a constant, see `WholeWeights.idle_loss`. The loop has divided the loss by the number of micro-batches."""
        if tensor.requires_grad:
            engine_of(model).backward(tensor, *args, scale_wrt_gas=False, **kwargs)

    def optimizer_step(self, optimizer: Optimizer, model: LightningModule, closure: Callable[[], Any], **kwargs: Any) -> None:  # type: ignore[override]
        """Called after every micro-batch; the engine steps after a step's last one. An idle step is none of the engine's."""
        assert isinstance(model, Method)
        closure()
        self._after_closure(model, optimizer)
        if model.idle:
            return
        engine = engine_of(model)
        ends = engine.is_gradient_accumulation_boundary()
        engine.step(**kwargs)
        if ends:
            norm = engine.get_global_grad_norm()
            assert norm is not None
            model.grad_norm = float(norm)


def pass_over_zero_gradients(zero: Any) -> None:
    """Let the optimizer move nothing and count no step where the gradient is exactly 0, as methods do elsewhere.

    The engine tells the norm just before the optimizer steps, once for each of its groups; what it lends the optimizer as gradients is
    its own to let go of, so it is put back. zero: the engine's optimizer.
    """
    lent: list[tuple[nn.Parameter, Tensor | None]] = []

    def take(base: Optimizer, *_: Any) -> None:
        if zero._global_grad_norm == 0.0:
            lent.extend((parameter, parameter.grad) for group in base.param_groups for parameter in group["params"])
            for parameter, _gradient in lent:
                parameter.grad = None

    def give_back(*_: Any) -> None:
        for parameter, gradient in lent:
            parameter.grad = gradient
        lent.clear()

    zero.optimizer.register_step_pre_hook(take)
    zero.optimizer.register_step_post_hook(give_back)


def engine_of(model: LightningModule) -> DeepSpeedEngine:
    """The engine that wraps a module in training."""
    engine = model.trainer.model
    assert isinstance(engine, DeepSpeedEngine)
    return engine
