"""When an answer ends: at one of the end tokens, or when its text holds one of the stop strings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"  # what part of a character decodes to
UNKNOWN, NO, MAYBE = 0, 1, 2
SLACK = 8  # tokens without text of their own that a stop string's tokens may stand among


class Stops:
    """Looks at the newest token of every row; text is decoded only where that token could complete a stop string.

    tokens: ids that end an answer. strings: texts that end one; they need the tokenizer. A string counts where it appears in the text of
    the answer alone, never across the end of the prompt.
    """

    def __init__(self, tokens: Sequence[int], strings: Sequence[str] = (), tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        if strings and tokenizer is None:
            raise ValueError("stop strings need a tokenizer")
        self.tokens = np.array(sorted(tokens), np.int64)
        self.strings = tuple(strings)
        self.tokenizer = tokenizer
        self.tail = max((len(text.encode()) for text in strings), default=0) + SLACK
        self._last = frozenset(text[-1] for text in strings)
        self._always = any(text[-1].isspace() for text in strings)  # a token alone may decode without the space it begins with
        self._verdict: np.ndarray = np.zeros(1, np.int8)

    def reached(self, newest: np.ndarray, answers: np.ndarray, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Whether each of B answers ends with its newest token, bool [B].

        newest: [B], the tokens. answers: [S, L], all answers' tokens, the newest included. rows: [B], where each stands in `answers`.
        counts: [B], its tokens.
        """
        ended = np.isin(newest, self.tokens)
        if self.strings:
            for i in np.flatnonzero(~ended & self._may_end(newest)):
                ended[i] = self._in_text(answers[rows[i], max(0, counts[i] - self.tail) : counts[i]])
        return ended

    def _may_end(self, newest: np.ndarray) -> np.ndarray:
        """Whether a token's own text has the last character of a stop string, or a part of some character."""
        most = int(newest.max(initial=0)) + 1
        if most > len(self._verdict):
            self._verdict = np.concatenate([self._verdict, np.zeros(most - len(self._verdict), np.int8)])
        for token in np.unique(newest[self._verdict[newest] == UNKNOWN]):
            text = self._text([int(token)])
            self._verdict[token] = MAYBE if self._always or BROKEN in text or any(character in self._last for character in text) else NO
        return self._verdict[newest] == MAYBE

    def _in_text(self, tokens: np.ndarray) -> bool:
        text = self._text(tokens.tolist())
        return any(stop in text for stop in self.strings)

    def _text(self, tokens: list[int]) -> str:
        assert self.tokenizer is not None
        text = self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text
