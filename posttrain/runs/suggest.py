"""Nearest valid names, for error messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

CLOSE = 0.7
ELSEWHERE = 0.9  # a name that only resembles one in another group is less likely meant


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid dotted name closest to `name`, or None when nothing is close.

    A name whose last part equals (`lr` -> `optimizer.lr`) or resembles the asked one counts as close, so does a typing error anywhere.
    """
    scored = [(*_closeness(name.replace("/", "."), other.replace("/", ".")), other) for other in sorted(set(valid))]
    close = [item for item in scored if item[0] >= CLOSE]
    return max(close)[-1] if close else None


def _closeness(name: str, other: str) -> tuple[float, float]:
    """Likeness (0 to 1) that decides, then likeness of the whole names. Beside each other only the last parts are compared."""
    parent, _, last = name.rpartition(".")
    other_parent, _, other_last = other.rpartition(".")
    whole = SequenceMatcher(None, name, other).ratio()
    tail = max(SequenceMatcher(None, last, other_last).ratio(), 0.8 * (last in other_last.split("_")))
    if parent == other_parent:
        return tail, whole
    if last == other_last:
        return tail, whole
    return tail * (SequenceMatcher(None, parent, other_parent).ratio() if parent and other_parent else ELSEWHERE), whole


def hint(name: str, valid: Iterable[str], *, most: int = 12) -> str:
    """`did you mean X?`, or the list of what is valid when nothing is near; empty when nothing is valid."""
    names = list(dict.fromkeys(valid))
    best = nearest(name, names)
    if best is not None:
        return f"did you mean {best}?"
    if not names:
        return ""
    return "valid here: " + ", ".join(names[:most]) + (", ..." if len(names) > most else "")
