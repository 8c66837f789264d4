"""Optimizer factories. The keyword-only parameters of each are its schema in conf/optimizer; `params` comes from the run.

Weight decay is for matrices (2-D and more, embeddings included) and never for norms, biases and other vectors: the
convention of GPT-2/3 training code and of Hugging Face's trainer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, Adafactor, AdamW, Optimizer

from posttrain.errors import ConfigError, MissingExtra, Problem

NamedParameters = Iterable[tuple[str, nn.Parameter]]


def adamw(
    params: NamedParameters,
    *,
    lr: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    fused: bool = True,
) -> Optimizer:
    """AdamW (Loshchilov and Hutter, 2019, arXiv 1711.05101): Adam with decoupled weight decay. `fused` uses one kernel for all weights."""
    return AdamW(decay_groups(params, weight_decay), lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=fused)


def adamw_8bit(
    params: NamedParameters,
    *,
    lr: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    min_8bit_size: int = 4096,
    paged: bool = False,
) -> Optimizer:
    """AdamW with both moments kept in 8 bits, block-wise (Dettmers et al., 2022, arXiv 2110.02861): 2 bytes a weight in place of 8.

    Tensors under `min_8bit_size` elements keep 32-bit moments. `paged` lets the moments move to host memory (CUDA).
    Raises MissingExtra without bitsandbytes.
    """
    try:
        from bitsandbytes.optim import AdamW8bit
    except ModuleNotFoundError as error:
        raise MissingExtra("optimizer=adamw_8bit", "quant") from error
    groups = decay_groups(params, weight_decay)
    return AdamW8bit(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, min_8bit_size=min_8bit_size, is_paged=paged)


def adafactor(
    params: NamedParameters,
    *,
    lr: float,
    weight_decay: float = 0.0,
    beta2_decay: float = -0.8,
    clip_threshold: float = 1.0,
) -> Optimizer:
    """Adafactor (Shazeer and Stern, 2018, arXiv 1804.04235): second moments by row and column, no first moment.

    `lr` is relative to a weight's scale; updates are clipped at root mean square `clip_threshold`.
    """
    return Adafactor(decay_groups(params, weight_decay), lr=lr, beta2_decay=beta2_decay, d=clip_threshold)


def sgd(params: NamedParameters, *, lr: float, weight_decay: float = 0.0, momentum: float = 0.9, nesterov: bool = False) -> Optimizer:
    """Stochastic gradient descent with momentum."""
    return SGD(decay_groups(params, weight_decay), lr=lr, momentum=momentum, nesterov=nesterov)


def decay_groups(params: NamedParameters, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups of the trainable weights: matrices with decay, vectors and biases without. An empty group is left out.

    The biases of fused experts are matrices by their shape alone. Raises ConfigError when nothing is trainable.
    """
    trainable = [(name, parameter) for name, parameter in params if parameter.requires_grad]
    if not trainable:
        raise ConfigError(Problem("model", "has no trainable weight", "train the whole model with model/peft=null, or choose adapters"))
    matrices = [parameter for name, parameter in trainable if parameter.ndim >= 2 and not name.endswith("bias")]
    vectors = [parameter for name, parameter in trainable if parameter.ndim < 2 or name.endswith("bias")]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
