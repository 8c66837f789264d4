"""Which held-out examples are looked at, where not all are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def spread(items: Sequence[Item], count: int | None) -> list[Item]:
    """`count` items spread over a sequence, so that a mixture's later sources are heard too; more of them include the fewer ones.

    Places are taken in the order of their binary digits read backwards: the first, the middle, the quarters (van der Corput). None: all.
    """
    if count is None or count >= len(items):
        return list(items)
    width = max(len(items) - 1, 1).bit_length()
    backwards = (int(f"{number:0{width}b}"[::-1], 2) for number in range(1 << width))
    places = islice((place for place in backwards if place < len(items)), count)
    return [items[place] for place in sorted(places)]
