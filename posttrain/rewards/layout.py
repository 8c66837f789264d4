"""The form of an answer: tags in their order, a pattern."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.rewards.base import Isolated
from posttrain.types import Sample

THINKING = ("think", "answer")


class Format(Isolated):
    r"""Whether the completion has the form it was asked for: `right` if so, else `wrong`.

    tags: names, in order: each opens and closes exactly once, nothing lies between or around them but white space, each holds something.
    pattern: a regular expression that the whole completion has to match (`.` matches line ends; white space at the ends does not count);
    a pattern that backtracks without end costs its answer, since this runs in a process of its own. Both must hold where both are given.
    opened: names of tags that the prompt has opened already.
    """

    def __init__(
        self,
        *,
        tags: Sequence[str] = THINKING,
        pattern: str | None = None,
        opened: Sequence[str] = (),
        right: float = 1.0,
        wrong: float = 0.0,
        timeout: float = 2.0,
        workers: int = 1,
        **common: Any,
    ) -> None:
        super().__init__(timeout=timeout, workers=workers, **common)
        self.tags, self.opened, self.right, self.wrong = tuple(tags), tuple(opened), right, wrong
        if not tags and pattern is None:
            raise ConfigError(
                Problem("reward.format", "has neither tags nor a pattern", "give reward.format.tags or reward.format.pattern")
            )
        self.pattern = None if pattern is None else compiled(pattern, "reward.format.pattern")

    def measure(self, samples: Sequence[Sample]) -> list[float]:
        """As `Reward`."""
        return [self.right if self._holds(sample.completion.strip()) else self.wrong for sample in samples]

    def _holds(self, text: str) -> bool:
        text = "".join(f"<{name}>" for name in self.opened) + text
        return has_tags(text, self.tags) and (self.pattern is None or self.pattern.fullmatch(text) is not None)


def has_tags(text: str, tags: Sequence[str]) -> bool:
    """Whether `text` is `<a>...</a> <b>...</b>` for these names, each tag exactly once, none empty."""
    for name in tags:
        opening, closing = f"<{name}>", f"</{name}>"
        if text.count(opening) != 1 or text.count(closing) != 1 or not text.lstrip().startswith(opening):
            return False
        inside, _, text = text.lstrip().removeprefix(opening).partition(closing)
        if not inside.strip() or any(f"<{other}>" in inside or f"</{other}>" in inside for other in tags):
            return False
    return not tags or not text.strip()


def compiled(pattern: str, where: str) -> re.Pattern[str]:
    """A regular expression. Raises ConfigError where it is none."""
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ConfigError(Problem(where, f"{pattern!r} is no regular expression: {error}")) from error
