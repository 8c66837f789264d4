"""What a judge is shown, kept apart from what it is told: marks that no answer can forge, and whose words in a reply count."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

DIGITS = 12


def fence(texts: Iterable[str]) -> str:
    """A word of 12 hexadecimal digits that stands in none of the texts, for the marks around them.

    It is a hash of all texts together, so that it is the same in every run, and an answer that is to hold it would have to hold its own
    hash. The order of the texts does not matter: swapped answers stand between the same marks.
    """
    known = sorted(texts)
    for attempt in range(1 << 16):
        made = hashlib.sha256("\0".join([str(attempt), *known]).encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]
        if not any(made in text for text in known):
            return made
    raise AssertionError("texts that hold 65,536 of their own hashes")


def own_words(reply: str, judged: Sequence[str], *forms: re.Pattern[str]) -> str:
    """The part of a judge's reply where its verdict counts: the whole reply, or its last line alone where a judged text holds something of
    one of the forms, which the reply may quote, and end (or be cut off) before it says anything of its own.
    """
    if not any(form.search(text) for form in forms for text in judged):
        return reply
    return reply.rstrip().rpartition("\n")[2]
