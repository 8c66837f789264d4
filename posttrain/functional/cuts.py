"""Where the parts of a row lie that is cut over ranks."""

from __future__ import annotations

from dataclasses import replace

from posttrain.types import Stretch

FLEX_BLOCK = 128  # tokens that FlexAttention's block masks go by
CUTS = {"ring": Stretch(), "ulysses": Stretch(), "torch": Stretch(pieces=2, block=FLEX_BLOCK)}  # hardware.context_method -> how it cuts


def part_of(method: str, rank: int, size: int) -> Stretch:
    """What of each row is a rank's. method: ring, ulysses or torch."""
    return replace(CUTS[method], rank=rank, size=size)


def places_of(stretch: Stretch, total: int) -> list[tuple[int, int]]:
    """Where a stretch's pieces begin and end in a row of `total` tokens. Raises ValueError where it has no such pieces."""
    pieces = stretch.size * stretch.pieces
    length, rest = divmod(total, pieces)
    if rest or length % stretch.block:
        raise ValueError(f"a row of {total} tokens has no {pieces} pieces of whole blocks of {stretch.block}")
    numbers = (stretch.rank, 2 * stretch.size - 1 - stretch.rank)[: stretch.pieces]
    return [(number * length, (number + 1) * length) for number in numbers]
