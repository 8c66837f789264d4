"""Words: cutting texts into them, counting listed ones, and the lists that ship. They are short and English: configure your own."""

from __future__ import annotations

import re
from collections.abc import Iterable

TOXIC = ("bastard", "bitch", "crap", "cunt", "damn", "dick", "fuck", "fucking", "hate", "idiot", "kill", "moron", "shit", "stupid", "whore")
DISRESPECT = (
    "dumb", "idiot", "idiots", "lazy", "moron", "pathetic", "shut up", "stupid", "ridiculous question", "worthless", "you should know",
)  # fmt: skip
UNSAFE = (
    "alcohol", "beer", "casino", "cigarettes", "cocaine", "drugs", "gambling", "nude", "porn", "sex", "suicide", "vodka", "weapon",
    "weapons",
)  # fmt: skip
GUIDING = (
    "a hint", "can you", "consider", "how could", "let's", "let us", "look at", "remember", "start by", "step by step", "think about",
    "try to", "what do you", "what happens", "what if", "which",
)  # fmt: skip
REFUSING = ("can't help", "cannot help", "can't do that", "i can't", "i cannot", "i won't", "i will not", "not able to", "not appropriate")
ALTERNATIVES = ("but i can", "but we can", "how about", "i can help", "instead", "let's talk about", "talk to", "we could", "you could")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def words(text: str) -> list[str]:
    """The words of a text, in lower case, in order."""
    return _WORD.findall(text.lower().replace("\u2019", "'"))


def mentions(text: str, phrases: Iterable[str]) -> bool:
    """Whether one of the phrases stands in the text as whole words."""
    line = f" {' '.join(words(text))} "
    return any(f" {' '.join(words(phrase))} " in line for phrase in phrases)
