"""Whether an answer is written in the scripts it should be."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.rewards.base import Reward
from posttrain.types import Sample

# how the Unicode names of a script's letters begin
SCRIPTS = {
    "latin": ("LATIN", "FULLWIDTH LATIN"),
    "cyrillic": ("CYRILLIC",),
    "greek": ("GREEK",),
    "arabic": ("ARABIC",),
    "hebrew": ("HEBREW",),
    "devanagari": ("DEVANAGARI",),
    "bengali": ("BENGALI",),
    "tamil": ("TAMIL",),
    "thai": ("THAI",),
    "han": ("CJK",),
    "japanese": ("CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA"),
    "korean": ("HANGUL", "CJK"),
}


class Language(Reward):
    """The share of letters that belong to `scripts`; 1 for an answer without letters. No model: scripts, not words, are told apart.

    Greek letters of formulas count as foreign where greek is not asked for. diacritics: least share of the letters that must have
    diacritics, for languages such as Vietnamese (about 0.2); below it the value falls in proportion. 0 for no such test.
    """

    def __init__(self, *, scripts: Sequence[str] = ("latin",), diacritics: float = 0.0, **common: Any) -> None:
        super().__init__(**common)
        if unknown := set(scripts) - set(SCRIPTS):
            message = f"there is no script {', '.join(sorted(unknown))}"
            raise ConfigError(Problem("reward.language.scripts", message, f"known are {', '.join(SCRIPTS)}"))
        self.prefixes = tuple(prefix for script in scripts for prefix in SCRIPTS[script])
        self.diacritics = diacritics

    def measure(self, samples: Sequence[Sample]) -> list[float]:
        """As `Reward`."""
        return [self.of(sample.completion) for sample in samples]

    def of(self, text: str) -> float:
        """The value of a text."""
        letters = [letter for letter in unicodedata.normalize("NFC", text) if letter.isalpha()]
        if not letters:
            return 1.0
        share = sum(name_of(letter).startswith(self.prefixes) for letter in letters) / len(letters)
        marked = sum(" WITH " in name_of(letter) for letter in letters) / len(letters)
        return share if not self.diacritics else share * min(1.0, marked / self.diacritics)


@lru_cache(maxsize=65536)
def name_of(letter: str) -> str:
    """A character's Unicode name; empty for none."""
    return unicodedata.name(letter, "")
