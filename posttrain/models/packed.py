"""Linear layers on a CPU whose weights are laid out beforehand as the matrix kernel reads them.

A product with few rows, as decoding makes them, spends its time on reading the weight. oneDNN does so several times faster from its own
layout, on all threads; PyTorch's ordinary product of float32 goes to another library, which for few rows uses one thread. What is packed
is a second copy of the weights: it is for stretches in which weights do not change, and is dropped at their end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

log = logging.getLogger(__name__)

KINDS = (torch.float32, torch.bfloat16)
ROWS = 32  # that the layout is chosen for; it was seen to be the faster one from 1 to 700 rows

Product = Callable[[Tensor], Tensor]


@contextmanager
def packed_linears(model: nn.Module) -> Iterator[None]:
    """Plain linear layers of `model` compute from packed weights in here, also those below adapters; hooks run as ever.

    Left as they are: subclasses (quantised layers), weights that are cut over ranks, lie on a device or have another type than float32 and
    bfloat16, and everything in a compiled model, whose graphs would be made anew each time. The same numbers up to rounding. No weight may
    change inside; a product that is to be differentiated is an ordinary one.
    """
    packed: list[nn.Module] = []
    try:
        if any(map(available, KINDS)) and not any(module._compiled_call_impl is not None for module in model.modules()):
            for module in model.modules():
                if type(module) is nn.Linear and "forward" not in vars(module) and packable(module.weight):
                    module.forward = _forward(module)  # type: ignore[method-assign, assignment]
                    packed.append(module)
        yield
    finally:
        for module in packed:
            del vars(module)["forward"]


def packable(weight: Tensor) -> bool:
    """Whether a weight is an ordinary, whole matrix on a CPU that the kernel knows the type of."""
    ordinary = type(weight) in (Tensor, nn.Parameter) and weight.device.type == "cpu"
    return ordinary and weight.dim() == 2 and weight.numel() > 0 and weight.dtype in KINDS and available(weight.dtype)


def packed_product(weight: Tensor, bias: Tensor | None = None) -> Product | None:
    """x [..., I] -> x weight^T (+ bias) [..., O], without gradient, for x of the weight's type; None where it cannot be packed here."""
    if not packable(weight):
        return None
    packed, added = _pack(weight.detach()), None if bias is None else bias.detach().to(weight.dtype)
    return lambda x: _multiply(x, packed, added)


@cache
def available(kind: torch.dtype) -> bool:
    """Whether this PyTorch packs weights of this type and multiplies with them on this processor: tried once on a small product."""
    if not torch.backends.mkldnn.is_available():
        return False
    weight, x, bias = (part.to(kind) for part in (torch.arange(12.0).view(3, 4), torch.ones(2, 4), torch.ones(3)))
    try:  # whole numbers, which have exact sums
        works = torch.equal(_multiply(x, _pack(weight), bias), F.linear(x, weight, bias))
    except (AttributeError, RuntimeError, NotImplementedError) as reason:  # not public operators: another version may lack them
        log.debug("linear layers are not packed for decoding: %s", reason)
        return False
    if not works:
        log.debug("linear layers are not packed for decoding: a product with packed weights came out wrong")
    return works


def _forward(linear: nn.Linear) -> Product:
    """What `linear` computes, in the type that autocast asks for now; where another is asked for later, the ordinary product."""
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else linear.weight.dtype
    weight = linear.weight.detach().to(kind)
    product = packed_product(weight, linear.bias)

    def forward(x: Tensor) -> Tensor:
        asked = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if product is None or asked != kind or torch.is_grad_enabled():
            return F.linear(x, linear.weight, linear.bias)
        return product(x.to(kind))

    return forward


def _pack(weight: Tensor) -> Tensor:
    found = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
    assert isinstance(found, Tensor)
    return found


def _multiply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    found = torch.ops.mkldnn._linear_pointwise.default(x, packed, bias, "none", [], "")
    assert isinstance(found, Tensor)
    return found
