"""A writer that follows a rule, for tests and demonstrations of critique and revision."""

from __future__ import annotations

import re
from collections.abc import Sequence

from posttrain.errors import ConfigError, Problem
from posttrain.rewards.backends.base import Backend, Question, Silence


class Writer(Backend):
    """Answers with `draft`, in which {prompt} stands for the last message; criticises the words in `avoid`, and revises by replacing them.

    A request comes without answers, a critique's question with the answer, a revision's with answer and critique.
    """

    def __init__(
        self, *, draft: str = "{prompt} That is a stupid question.", avoid: Sequence[str] = ("stupid",), instead: str = "good"
    ) -> None:
        if not avoid or not all(avoid):
            raise ConfigError(Problem("avoid", "expected one word at least, none of them empty", "avoid=[stupid]"))
        self.draft, self.instead = draft, instead
        self._unwanted = re.compile("|".join(re.escape(word) for word in avoid))

    def ask(self, questions: Sequence[Question]) -> list[str | Silence]:
        """See `Backend`."""
        return [self._reply(question) for question in questions]

    def _reply(self, question: Question) -> str:
        if not question.answers:
            return self.draft.replace("{prompt}", str(question.messages[-1].get("content", "")))
        if len(question.answers) == 1:
            found = self._unwanted.findall(question.answers[0])
            return f"It says {', '.join(found)}." if found else "There is nothing to mend."
        return f"[revision]\n{self._unwanted.sub(self.instead, question.answers[0])}\n[end of revision]"
