"""Trained reward models as rewards."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from posttrain.errors import ConfigError, Problem
from posttrain.rewards.base import Reward, Unscored, said
from posttrain.rewards.steps import split_steps
from posttrain.types import Sample

if TYPE_CHECKING:
    from posttrain.rewards.scorers import RewardScorer, StepScorer

Aggregate = Literal["min", "mean", "last", "product"]


def _product(values: Sequence[float]) -> float:
    result = 1.0
    for value in values:
        result *= value
    return result


AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "mean": lambda values: sum(values) / len(values),
    "last": lambda values: values[-1],
    "product": _product,
}


class _Trained(Reward):
    """path: the artifact's folder. device: auto is where the policy is. template_kwargs: as
    `data.template_kwargs`; None for those of its training, which are in the artifact, {} for none."""

    _scorer: RewardScorer | StepScorer | None

    def __init__(self, *, path: str, device: str = "auto", template_kwargs: dict[str, Any] | None = None, **common: Any) -> None:
        super().__init__(**common)
        self.path, self.device, self.template_kwargs = path, device, template_kwargs
        if not Path(os.path.expanduser(path)).is_dir():
            raise ConfigError(Problem("reward.path", f"there is no folder {path}", "give the artifact of a trained reward model"))

    def place(self, device: str) -> None:
        """See `Reward`."""
        if self.device == "auto":
            self.device = device

    @property
    def operations(self) -> float:
        """See `Reward`."""
        return 0.0 if self._scorer is None else self._scorer.judge_tokens.operations

    @property
    def _options(self) -> dict[str, Any]:
        return {"device": "cpu" if self.device == "auto" else self.device, "template_kwargs": self.template_kwargs}


class RewardModel(_Trained):
    """The score of a trained reward model (scalar, branch or quantile head) for the prompt and the completion.

    output: reward, or the name of one of its attributes (a branch head). max_tokens: of a batch, padding included.
    """

    def __init__(self, *, output: str = "reward", max_tokens: int = 8192, **common: Any) -> None:
        super().__init__(**common)
        self.output, self.max_tokens = output, max_tokens
        self._scorer: RewardScorer | None = None

    def start(self) -> None:
        """Load the model, once."""
        from posttrain.rewards.scorers import load_reward_model

        self._scorer = self._scorer or load_reward_model(self.path, **self._options)
        names = self._scorer.judge_tokens.head.attributes
        if self.output != "reward" and self.output not in names:
            known = f"it has {', '.join(names)}" if names else "it has none"
            raise ConfigError(Problem("reward.output", f"{self.path} judges no {self.output}", known))

    def measure(self, samples: Sequence[Sample]) -> list[float]:
        """As `Reward`."""
        self.start()
        assert self._scorer is not None
        judged = self._scorer.judge([conversation(sample) for sample in samples], max_tokens=self.max_tokens)
        if self.output == "reward":
            return judged.reward.tolist()
        assert judged.attributes is not None
        return judged.attributes[:, self._scorer.judge_tokens.head.attributes.index(self.output)].tolist()


class ProcessRewardModel(_Trained):
    """A process reward model's probabilities that the steps of a completion are right, as one number.

    aggregate: min (a chain is as good as its worst step), mean, last, product. separator: what parts steps; None for that of its training.
    """

    def __init__(self, *, aggregate: Aggregate = "min", separator: str | None = None, **common: Any) -> None:
        super().__init__(**common)
        self.aggregate, self.separator = aggregate, separator
        self._scorer: StepScorer | None = None

    def start(self) -> None:
        """Load the model, once."""
        from posttrain.rewards.scorers import load_process_reward_model

        self._scorer = self._scorer or load_process_reward_model(self.path, **self._options)

    def measure(self, samples: Sequence[Sample]) -> list[float]:
        """As `Reward`."""
        self.start()
        return [self._of(sample) for sample in samples]

    def _of(self, sample: Sample) -> float:
        assert self._scorer is not None
        separator = self._scorer.separator if self.separator is None else self.separator
        steps = split_steps(sample.completion, separator)
        if not steps:
            return Unscored("no steps: the completion is empty")
        try:
            return AGGREGATES[self.aggregate](self._scorer(sample.prompt, steps, separator=separator).tolist())
        except ValueError as error:
            return Unscored(said(error))


def conversation(sample: Sample) -> list[dict[str, Any]]:
    """The prompt and the completion as messages."""
    return [*map(dict, sample.prompt), {"role": "assistant", "content": sample.completion}]
