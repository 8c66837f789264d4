"""Code rewarded by the tests it passes, run in the sandbox."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from posttrain.cores import usable_cores
from posttrain.rewards.base import Reward, Unscored
from posttrain.rewards.sandbox import Limits, Outcome, defines, program_of, run_check, run_tests, tested_names
from posttrain.types import Sample


class Code(Reward):
    """The share of a task's tests that the answer's Python program passes (MBPP: `tests`, `setup`; HumanEval: `test`, `entry_point`).

    pass_reward: where all pass. partial: times the share, where some do. fail: where none does, also for programs that do not run, run
    out of time or answers without code. timeout: seconds of a program with all its tests; cpu: of processor time; memory: MiB; each for
    the program and again for its tests. use_challenge_tests: MBPP's harder tests too. workers: programs at the same time, None for one
    per processor. NaN where nothing can be said: no tests, another language, tests that the sandbox cannot run.
    """

    def __init__(
        self,
        *,
        pass_reward: float = 1.0,
        partial: float = 0.5,
        fail: float = -0.5,
        timeout: float = 10.0,
        cpu: int = 5,
        memory: int = 512,
        use_challenge_tests: bool = False,
        workers: int | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.pass_reward, self.partial, self.fail = pass_reward, partial, fail
        self.use_challenge_tests, self.workers = use_challenge_tests, workers
        self.limits = Limits(wall=timeout, cpu=cpu, memory=memory)

    def measure(self, samples: Sequence[Sample]) -> list[float]:
        """As `Reward`."""
        with ThreadPoolExecutor(self.workers or usable_cores(os.environ)) as pool:
            return list(pool.map(self._value, samples))

    def _value(self, sample: Sample) -> float:
        if not is_python(sample):
            return Unscored(f"tests in another language than Python: {sample.meta['language']}")
        outcome = self.judge(sample)
        if outcome is None:
            return Unscored("no tests")
        value = self.scale(outcome)
        return Unscored(outcome.error or "no tests") if math.isnan(value) else value

    def scale(self, outcome: Outcome) -> float:
        """The reward of an outcome; NaN for one that says nothing."""
        if outcome.status == "unusable" or outcome.total == 0:
            return math.nan
        if outcome.status == "passed":
            return self.pass_reward
        return self.partial * outcome.passed / outcome.total if outcome.passed else self.fail

    def judge(self, sample: Sample) -> Outcome | None:
        """What became of the tests of one answer; None if there are none, or not in Python."""
        meta = sample.meta
        if not is_python(sample):
            return None
        if meta.get("test") and meta.get("entry_point"):
            return self._check(sample.completion, str(meta["test"]), str(meta["entry_point"]), str(meta.get("prompt") or ""))
        tests = [*listed(meta.get("tests")), *(listed(meta.get("challenge_tests")) if self.use_challenge_tests else ())]
        if not tests:
            return None
        code = program_of(sample.completion, tested_names(tests))
        return run_tests(code, setup=str(meta.get("setup") or ""), tests=tests, limits=self.limits)

    def _check(self, answer: str, test: str, entry_point: str, prompt: str) -> Outcome:
        code = program_of(answer, (entry_point,))
        if defines(code, entry_point):
            return run_check(code, test, entry_point, self.limits, setup=prompt)
        if continues(code):
            return run_check(prompt + code, test, entry_point, self.limits, setup=prompt)
        # Not beside the prompt: what that begins is a function that does nothing, which some tests pass.
        return run_check(code, test, entry_point, self.limits)


def continues(code: str) -> bool:
    """Whether code goes on with a function that a prompt has begun: its first statement is indented."""
    lines = (line for line in code.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    return next(lines, "")[:1] in (" ", "\t")


def is_python(sample: Sample) -> bool:
    """Whether a task's tests are in Python: it says so (`Python`, `python3`, `py`), or names no language."""
    language = str(sample.meta.get("language") or "python").strip().casefold()
    return re.fullmatch(r"(?:python|py)[ -]?(?:3(?:\.\d+)?)?", language) is not None


def listed(tests: Any) -> list[str]:
    """A task's tests, each as text; a text alone is one test."""
    return [tests] if isinstance(tests, str) and tests.strip() else [str(test) for test in tests or ()]
