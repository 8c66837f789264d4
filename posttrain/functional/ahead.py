"""Gradients of the output head in the forward pass, for losses whose slope in every log-probability is known before.

The gradient of sum_t s_t log p_t needs the logits that its value needs. Where s is known, both are made while the logits are there, and the
backward pass only multiplies by the factor that s was known up to: the logits are neither kept nor computed a second time (as Liger's fused
linear cross entropy does, arXiv:2410.10989, section 3.2). Rows are taken a chunk at a time, with the whole vocabulary; the gradient of the
weight grows with every chunk, which is read and written once more each time. That pays on a CPU (from some 30 rows a chunk), hardly on a
device, whose products are faster against its memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.functional.head import (
    BLOCK_ELEMENTS,
    KEPT_ELEMENTS,
    PLAIN_HEAD,
    HeadSpec,
    fitting_columns,
    head_logits,
    matrix_in,
    within,
)

CHUNK_ELEMENTS = KEPT_ELEMENTS + BLOCK_ELEMENTS["cpu"]  # logits that are there at once: the room that the other way takes


@dataclass(frozen=True)
class Ahead:
    """logps, lse: [N]. correct: [N] bool, whether the target is the argmax. hidden, weight: gradients [N, H] and [V, H] of
    sum_t slopes_t logps_t."""

    logps: Tensor
    lse: Tensor
    correct: Tensor
    hidden: Tensor
    weight: Tensor

    def times(self, slopes: Tensor, given: Tensor) -> tuple[Tensor, Tensor] | None:
        """The gradients for the slopes `given` [N], computed in place; None where these are no multiple of the known `slopes`."""
        place = slopes.abs().argmax()
        factor = given[place] / slopes[place]
        if not torch.allclose(given, slopes * factor, rtol=1e-6, atol=0.0):
            return None
        return (self.hidden, self.weight) if factor == 1 else (self.hidden.mul_(factor), self.weight.mul_(factor))


def pays(device: str, *, half: bool, softcap: float | None, bias: bool) -> bool:
    """Whether known slopes are made use of: on a CPU, in float32 or wider, for logits that are a multiple of hidden @ weight.T."""
    return device == "cpu" and not half and softcap is None and not bias


def head_ahead(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    slopes: Tensor,
    head: HeadSpec = PLAIN_HEAD,
    *,
    elements: int = CHUNK_ELEMENTS,
    columns: int | None = None,
) -> Ahead:
    """log softmax(head(hidden)) at each target, and the gradients of its sum weighted with the slopes.

    hidden: [N, H]. weight: [V, H]. target: [N] int64. slopes: [N]. All of one type, float32 or float64; the head without soft-capping.
    elements: logits that are there at once, at most (but for those of one row). columns: of a block, by default what fits.
    """
    factor = head.scale / head.temperature
    by_row = slopes * factor
    logps, lse, correct = torch.empty_like(slopes), torch.empty_like(slopes), torch.empty_like(target, dtype=torch.bool)
    dh, dw = torch.empty_like(hidden), torch.empty_like(weight)
    chunks = _chunks(len(target), len(weight), elements)
    most = chunks[0].stop if chunks else 0
    room, columns = hidden.new_empty(most * len(weight)), columns or fitting_columns(most, "cpu")
    blocks = [slice(a, min(a + columns, len(weight))) for a in range(0, len(weight), columns)]
    for number, rows in enumerate(chunks):
        given = (hidden[rows], weight, target[rows], by_row[rows], head, blocks)
        logps[rows], lse[rows], correct[rows] = _chunk(*given, room, dh[rows], dw, first=number == 0)
    dw.index_add_(0, target, hidden * by_row[:, None])
    return Ahead(logps, lse, correct, dh, dw)


def _chunks(rows: int, vocabulary: int, elements: int) -> list[slice]:
    """Equal parts of the rows that fit."""
    count = max(1, -(-rows * vocabulary // elements))
    size = max(1, -(-rows // count))
    return [slice(a, min(a + size, rows)) for a in range(0, rows, size)]


def _chunk(
    h: Tensor,
    weight: Tensor,
    target: Tensor,
    slopes: Tensor,
    head: HeadSpec,
    blocks: list[slice],
    room: Tensor,
    dh: Tensor,
    dw: Tensor,
    *,
    first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """logps, lse and whether the targets are the argmax, of some rows; dh is written, dw added to (written at first) all but the targets'
    own part.

    A block's softmax P_b is of itself alone: p = P_b e^(lse_b - lse). The factor belongs to a row, so that it is not the block that is
    multiplied by it, but what the block meets: dh = -(s e^(lse_b - lse)) (P_b W_b), dW_b = -P_b^T (s e^(lse_b - lse) h).
    """
    n = len(target)
    places = [matrix_in(room[n * block.start :], n, block) for block in blocks]
    picked, tops, masses = torch.zeros_like(slopes), h.new_empty(n, len(blocks)), h.new_empty(n, len(blocks))
    for number, (block, place) in enumerate(zip(blocks, places, strict=True)):
        logits = head_logits(h, weight[block], None, head, place)
        inside, column = within(target - block.start, block.stop - block.start)
        picked = torch.where(inside, logits.gather(1, column[:, None])[:, 0], picked)
        tops[:, number] = logits.amax(1)
        torch.softmax(logits, 1, out=logits)
        masses[:, number] = tops[:, number] - logits.amax(1).log()  # the largest probability is 1 / sum e^(l - top)
    lse = masses.logsumexp(1)
    factors = (masses - lse[:, None]).exp_().mul_(-slopes[:, None])
    torch.mul(weight[target], slopes[:, None], out=dh)
    for number, (block, place) in enumerate(zip(blocks, places, strict=True)):
        by_row = factors[:, number, None]
        dh.add_((place @ weight[block]).mul_(by_row))
        if first:
            torch.mm(place.t(), h * by_row, out=dw[block])
        else:
            dw[block].addmm_(place.t(), h * by_row)
    return picked - lse, lse, picked >= tops.amax(1)
