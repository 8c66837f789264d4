"""The output head: how logits come from hidden states, and the pieces in which they are computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Float32 logits of one block: small enough on a CPU to stay in its cache, large enough on a device to keep the matmuls efficient.
BLOCK_ELEMENTS = {"cpu": 1 << 22}
DEVICE_BLOCK_ELEMENTS = 1 << 26
KEPT_ELEMENTS = 1 << 24  # logits kept for the backward pass: 64 MiB
LEAST_COLUMNS = 256


@dataclass(frozen=True)
class HeadSpec:
    """How logits come from `hidden @ weight.T (+ bias)`: multiplied by `scale`, soft-capped, then divided by `temperature`.

    softcap: c in c * tanh(x / c) (Gemma 2, arXiv:2408.00118, section 2); None for none.
    """

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.softcap is not None and self.softcap <= 0:
            raise ValueError(f"softcap must be positive, got {self.softcap}")


PLAIN_HEAD = HeadSpec()


def fitting_columns(targets: int, device: str) -> int:
    """Vocabulary entries of a block that fits the kind of device."""
    fitting = BLOCK_ELEMENTS.get(device, DEVICE_BLOCK_ELEMENTS) // max(1, targets)
    return max(LEAST_COLUMNS, fitting // LEAST_COLUMNS * LEAST_COLUMNS)


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The type that the head's matmul runs in: autocast's where it is on."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def matmul_float32(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ right with a float32 (or wider) result, without rounding to bf16 where the device can avoid it; `out` may be its place."""
    if left.dtype in (torch.float32, torch.float64):
        return torch.mm(left, right) if out is None else torch.mm(left, right, out=out)
    product = torch.mm(left, right, out_dtype=torch.float32) if left.is_cuda else (left @ right).float()
    return product if out is None else out.copy_(product)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right in total's (wide) type."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += matmul_float32(left, right)


def head_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, head: HeadSpec, out: Tensor | None = None) -> Tensor:
    """Final logits [N, v] of hidden [N, H] and a block [v, H] of the head, of one type; at least float32; written to `out` if given."""
    return finished_logits(matmul_float32(hidden, weight.t(), out), bias, head)


def finished_logits(logits: Tensor, bias: Tensor | None, head: HeadSpec) -> Tensor:
    """Final logits from `hidden @ weight.T` [N, v], which is overwritten."""
    if bias is not None:
        logits += bias
    if head.scale != 1.0:
        logits *= head.scale
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_().mul_(head.softcap)
    if head.temperature != 1.0:
        logits /= head.temperature
    return logits


def times_slope(d: Tensor, logits: Tensor | None, head: HeadSpec) -> Tensor:
    """d times the derivative of the final logits with respect to `hidden @ weight.T`; logits: needed under soft-capping."""
    if head.softcap is not None:
        assert logits is not None
        d *= 1 - (logits * (head.temperature / head.softcap)).square_()
    factor = head.scale / head.temperature
    return d if factor == 1.0 else d.mul_(factor)


def matrix_in(scratch: Tensor, rows: int, block: slice) -> Tensor:
    """The beginning of a flat buffer as [rows, columns of the block]."""
    return scratch[: rows * (block.stop - block.start)].view(rows, block.stop - block.start)


def part(bias: Tensor | None, block: slice) -> Tensor | None:
    return None if bias is None else bias.detach()[block]


def within(column: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Whether each column, counted from a block's first one, lies in the block of that width, and some column of it where it does not."""
    return (column >= 0) & (column < width), column.clamp(0, width - 1)
