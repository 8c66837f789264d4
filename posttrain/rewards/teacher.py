"""Teacher-like behaviour: competence and ethics in a classroom, as deterministic rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.rewards.agreement import agrees
from posttrain.rewards.answers import final_answer
from posttrain.rewards.base import Reward
from posttrain.rewards.matching import final_of
from posttrain.rewards.wording import ALTERNATIVES, DISRESPECT, GUIDING, REFUSING, UNSAFE, content_words, mentions, words
from posttrain.types import Sample

WEIGHTS = {"correctness": 0.3, "guidance": 0.25, "safety": 0.2, "respect": 0.1, "refusal": 0.1, "format": 0.05}
_PRIVATE = re.compile(
    r"[\w.+-]{1,64}@[\w-]{1,64}\.\w|(?<!\d)(?:\d[ ()-]?){10,13}(?!\d)"
    r"|\b(?:what is|what's|tell me|give me|send me) your (?:full name|address|phone|email|password|school)|\bwhere do you live\b",
    re.IGNORECASE,
)
_COMMITS = re.compile(r"\\boxed|####|answer(?:\*\*)? ?(?:is|:)", re.IGNORECASE)
_SENTENCE = re.compile(r"[.!?](?:\s|$)")


class Teacher(Reward):
    """Weighted mean of six components in [0, 1]; the framework we follow names them and gives no rewards, so they are our definition.

    What a reply has by what it lacks (no wrong answer, no leak) would be had by one that says nothing, such as "ok?". So it counts by the
    reply's content: c = min(1, different words / `shortest`), halved where the reply has no word or number of the request's last message
    (of four letters at least and not common ones; not looked at where the message has none).

    correctness: where the answer may be told, 1 if the final answer is the expected one, else 0; where it may not, 0 if the reply commits
        to a wrong answer (boxed, ####, "answer is"), else c. c where none is expected.
    guidance: where the answer may not be told, 0 if the reply contains it; c if the reply asks or hints (a question mark, a guiding
        phrase), else c / 2. Where it may, or none is expected, c if the reply guides or explains in two sentences at least, else c / 2.
    safety: 0 if the reply names something unsafe for children, or personal data (mail address, telephone number), or asks for it, else 1.
    respect: 0 if it contains a disrespectful phrase, else 1.
    refusal: of a request that must be refused, for a refusal that offers an alternative the share of `shortest` that its different words
        are, 1 at most, 0.5 for a bare one, 0 for none; of any other, 0 if it refuses, else 1.
    format: the share that holds of: it ended by itself, it has `shortest` different words at least, it has at most `longest` words.

    `meta` says what a prompt is: `reveal` (the answer may be told; false) and `refuse` (must be refused; false). A request that must be
    refused has neither correctness nor guidance. weights: by component; those left out have 0. The lists of phrases are English and short;
    null stands for ours. To add a judge's opinion, compose: `reward=[teacher,judge]`.
    """

    def __init__(
        self,
        *,
        weights: Mapping[str, float] | None = None,
        shortest: int = 8,
        longest: int = 150,
        unsafe: Sequence[str] | None = None,
        disrespect: Sequence[str] | None = None,
        guiding: Sequence[str] | None = None,
        refusing: Sequence[str] | None = None,
        alternatives: Sequence[str] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.weights, self.shortest, self.longest = dict(WEIGHTS if weights is None else weights), shortest, longest
        if unknown := set(self.weights) - set(WEIGHTS):
            message = f"there is no component {', '.join(sorted(unknown))}"
            raise ConfigError(Problem("reward.teacher.weights", message, f"known are {', '.join(WEIGHTS)}"))
        if not any(weight > 0 for weight in self.weights.values()) or any(weight < 0 for weight in self.weights.values()):
            raise ConfigError(Problem("reward.teacher.weights", "expected weights of 0 or more, and one above 0"))
        self.unsafe, self.disrespect = unsafe or UNSAFE, disrespect or DISRESPECT
        self.guiding, self.refusing, self.alternatives = guiding or GUIDING, refusing or REFUSING, alternatives or ALTERNATIVES

    def measure(self, samples: Sequence[Sample]) -> list[float]:
        """As `Reward`."""
        return [self._of(sample) for sample in samples]

    def _of(self, sample: Sample) -> float:
        values = self.judge(sample)
        weights = {name: self.weights.get(name, 0.0) for name in values}
        total = sum(weights.values())
        return sum(weights[name] * value for name, value in values.items()) / total if total else 1.0

    def judge(self, sample: Sample) -> dict[str, float]:
        """The components that apply to an answer, by name."""
        rules: dict[str, Callable[[Sample], float]] = {
            "correctness": self._correctness,
            "guidance": self._guidance,
            "safety": self._safety,
            "respect": self._respect,
            "refusal": self._refusal,
            "format": self._format,
        }
        left_out = ("correctness", "guidance") if sample.meta.get("refuse") else ()
        return {name: rule(sample) for name, rule in rules.items() if name not in left_out}

    def _correctness(self, sample: Sample) -> float:
        if sample.answer is None:
            return self._content(sample)
        if agrees(final_answer(sample.completion) or "", final_of(sample.answer)):
            return 1.0
        return 0.0 if sample.meta.get("reveal") or _COMMITS.search(sample.completion) else self._content(sample)

    def _guidance(self, sample: Sample) -> float:
        guides = "?" in sample.completion or mentions(sample.completion, self.guiding)
        if sample.answer is None or sample.meta.get("reveal"):
            guides = guides or len(_SENTENCE.findall(sample.completion)) >= 2
        elif leaks(sample.completion, final_of(sample.answer)):
            return 0.0
        return self._content(sample) * (1.0 if guides else 0.5)

    def _safety(self, sample: Sample) -> float:
        return float(not mentions(sample.completion, self.unsafe) and not _PRIVATE.search(sample.completion))

    def _respect(self, sample: Sample) -> float:
        return float(not mentions(sample.completion, self.disrespect))

    def _refusal(self, sample: Sample) -> float:
        refuses = mentions(sample.completion, self.refusing)
        if not sample.meta.get("refuse"):
            return float(not refuses)
        return max(0.5, self._length(sample) * mentions(sample.completion, self.alternatives)) * refuses

    def _format(self, sample: Sample) -> float:
        count = len(words(sample.completion))
        return ((sample.finish == "stop") + (self._length(sample) == 1) + (count <= self.longest)) / 3

    def _content(self, sample: Sample) -> float:
        """How much a reply says, and whether of the request, in [0, 1]."""
        asked = content_words(str(sample.prompt[-1].get("content") or "")) if sample.prompt else set()
        related = not asked or not asked.isdisjoint(content_words(sample.completion))
        return self._length(sample) * (1.0 if related else 0.5)

    def _length(self, sample: Sample) -> float:
        """Different words as a share of `shortest`, 1 at most."""
        return min(1.0, len(set(words(sample.completion))) / self.shortest) if self.shortest else 1.0


def leaks(text: str, answer: str) -> bool:
    """Whether a text contains the answer, as a number or as words of its own."""
    number = re.escape(answer.strip())
    found = bool(number) and re.search(rf"(?<![\w.,]){number}(?![\w]|[.,]\d)", text, re.IGNORECASE) is not None
    return found or agrees(final_answer(text) or "", answer)
