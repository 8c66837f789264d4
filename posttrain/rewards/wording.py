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
COMMON = (  # of four letters at least, and about nothing
    "about", "again", "also", "answer", "because", "been", "could", "does", "each", "explain", "find", "from", "give", "have", "help",
    "here", "into", "just", "know", "like", "made", "make", "many", "more", "most", "much", "need", "only", "other", "please", "question",
    "should", "show", "some", "such", "tell", "than", "that", "their", "them", "then", "there", "these", "they", "thing", "think", "this",
    "those", "very", "want", "were", "what", "when", "where", "which", "while", "will", "with", "would", "write", "your",
)  # fmt: skip
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def words(text: str) -> list[str]:
    """The words of a text, in lower case, in order."""
    return _WORD.findall(text.lower().replace("\u2019", "'"))


def content_words(text: str) -> set[str]:
    """The different words of a text that may tell what it is about: numbers, and words of four letters at least that are not common."""
    return {word for word in words(text) if word not in COMMON and (len(word) >= 4 or any(map(str.isdigit, word)))}


def mentions(text: str, phrases: Iterable[str]) -> bool:
    """Whether one of the phrases stands in the text as whole words."""
    line = f" {' '.join(words(text))} "
    return any(f" {' '.join(words(phrase))} " in line for phrase in phrases)
