"""Trajectories: an outcome and the steps that lead to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.rewards.agreement import agrees
from posttrain.rewards.answers import final_answer
from posttrain.rewards.base import Reward, Unscored
from posttrain.rewards.matching import NO_ANSWER, final_of
from posttrain.types import Sample


class Trajectory(Reward):
    """(1 - step_weight) * outcome + step_weight * steps, in [0, 1]; our definition.

    outcome: 1 where the final answer is the expected one, else 0. steps: the share of the expected intermediate values that the completion
    reaches, in their order: each is looked for in the steps after the one that reached the value before; a step's value is the last number
    it names. The last step is the outcome's and counts as a step too. Steps that reach nothing cost nothing (reward=length does that).
    For a judge of steps that was trained, compose `reward=[exact_match,process_reward_model]`.

    steps_key: where `meta` holds the list of expected values; answers to prompts without one have the outcome alone. separator: between
    steps.
    """

    def __init__(self, *, step_weight: float = 0.5, steps_key: str = "steps", separator: str = "\n", **common: Any) -> None:
        super().__init__(**common)
        self.step_weight, self.steps_key, self.separator = step_weight, steps_key, separator

    def measure(self, samples: Sequence[Sample]) -> list[float]:
        """As `Reward`; Unscored where the data expects neither an answer nor steps."""
        return [self._of(sample) for sample in samples]

    def _of(self, sample: Sample) -> float:
        expected = [str(value) for value in sample.meta.get(self.steps_key) or ()]
        if sample.answer is None and not expected:
            return Unscored(NO_ANSWER)
        reached = share_reached(split_steps(sample.completion, self.separator), expected) if expected else None
        if sample.answer is None:
            return reached or 0.0
        outcome = float(agrees(final_answer(sample.completion) or "", final_of(sample.answer)))
        return outcome if reached is None else (1 - self.step_weight) * outcome + self.step_weight * reached


def split_steps(text: str, separator: str) -> list[str]:
    """The steps of a worked answer, without empty ones."""
    return [step.strip() for step in text.split(separator) if step.strip()]


def share_reached(steps: Sequence[str], expected: Sequence[str]) -> float:
    """The share of `expected` values that `steps` reach, in order. One step reaches one value."""
    values = [final_answer(step) or "" for step in steps]
    start = reached = 0
    for wanted in expected:
        found = next((place for place in range(start, len(values)) if agrees(values[place], wanted)), None)
        if found is not None:
            start, reached = found + 1, reached + 1
    return reached / len(expected)
