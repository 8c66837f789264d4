"""Matrix products of the blocks in 8-bit floats (torchao), over weights that stay what they are.

Only linear layers inside the blocks are converted. Embeddings, the output head, norms, routers, adapters and fused expert tensors are left
alone. A converted layer has the plain one's parameters under the plain one's names: checkpoints and artifacts do not know of it.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Literal

from torch import nn

from posttrain.errors import ConfigError, MissingExtra, Problem
from posttrain.models.quantisation import block_linears, expert_parameters

if TYPE_CHECKING:
    from torchao.float8 import Float8LinearConfig
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

Recipe = Literal["tensorwise", "rowwise"]
MULTIPLE = 16  # of both sides of a weight, for the hardware's 8-bit products


def to_float8(model: PreTrainedModel, recipe: Recipe, *, emulate: bool) -> PreTrainedModel:
    """Replace the blocks' linear layers by ones that multiply in 8 bits, forwards and backwards, in place.

    recipe: `tensorwise`, one scale for a whole operand, so that what a token gets depends on the micro-batch that it is in; `rowwise`, one
        scale for each row (a token, an output feature), so that in the forward pass it does not, but for the last bit of what is rounded.
        In both, gradients of weights depend on how a step is split, by the rounding.
    emulate: round to 8 bits and multiply in float32, for devices without such products.
    Raises MissingExtra without torchao, ConfigError when there is no layer to convert.
    """
    linears = {name: model.get_submodule(name) for name in block_linears(model)}
    names = {name for name, linear in linears.items() if _fits(linear)}
    if not names:
        message = f"the model has no linear layer with both sides a multiple of {MULTIPLE} in its blocks"
        raise ConfigError(Problem("model.float8", message, "model.float8=null"))
    try:
        from torchao.float8 import convert_to_float8_training
    except ModuleNotFoundError as error:
        raise MissingExtra("model.float8", "quant") from error
    convert_to_float8_training(model, config=_config(recipe, emulate), module_filter_fn=lambda _, name: name in names)
    _report(model, recipe, converted=len(names), left=sorted(linears.keys() - names))
    return model


def _fits(linear: nn.Module) -> bool:
    assert isinstance(linear, nn.Linear)
    return linear.in_features % MULTIPLE == 0 and linear.out_features % MULTIPLE == 0


def _config(recipe: Recipe, emulate: bool) -> Float8LinearConfig:
    from torchao.float8 import Float8LinearConfig

    # Gradients of weights are products over tokens, whose number is any: the hardware wants it filled up to a multiple.
    return replace(Float8LinearConfig.from_recipe_name(recipe), emulate=emulate, pad_inner_dim=not emulate)


def _report(model: PreTrainedModel, recipe: Recipe, *, converted: int, left: list[str]) -> None:
    _tell(logging.INFO, f"{converted} linear layers multiply in 8-bit floats, scaled {recipe}.")
    if left:
        few = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        _tell(logging.WARNING, f"{len(left)} linear layers have a side that is no multiple of {MULTIPLE} and keep {model.dtype}: {few}.")
    if experts := expert_parameters(model):
        _tell(logging.WARNING, f"Fused expert tensors are not linear layers and keep {model.dtype}: {', '.join(experts)}.")


@cache
def _tell(level: int, words: str) -> None:
    """Once a process: a reference and an artifact's model are built like the policy."""
    log.log(level, words)
