"""What is known of a suite before it runs, by its function: what it can measure on, and the names of what it measures. Nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from posttrain.runs.schema import Count, Positive

HOME = "posttrain.evaluation.suites."
HELD_OUT = "held-out"  # data: the examples that the run itself held out
START = "start"  # against: the model that the run started from
Settings = Mapping[str, Any]
AtLeastZero = Annotated[float, Field(ge=0)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
ANSWERED: Mapping[str, Any] = {"limit": Count | None, "max_new_tokens": Count, "temperature": AtLeastZero}


@dataclass(frozen=True)
class About:
    """reads: kinds of data held out by a run that it measures on; data of other kinds are read as the first. Empty: it needs a file.

    metrics: names, by its settings; None where only the suite knows. ranges: types of settings, narrower than the function's.
    """

    reads: tuple[str, ...] = ()
    metrics: Callable[[Settings], tuple[str, ...]] | None = None
    ranges: Mapping[str, Any] = field(default_factory=dict)


def powers(samples: int) -> list[int]:
    """1, 2, 4, ... up to `samples`, which is the last."""
    return sorted({*(1 << place for place in range(samples.bit_length()) if 1 << place <= samples), samples})


def _sampled(settings: Settings) -> tuple[str, ...]:
    samples = int(settings.get("samples", 8))
    return ("greedy", *(f"pass_at_{k}" for k in powers(samples)), f"maj_at_{samples}")


ABOUT: Mapping[str, About] = {
    f"{HOME}local.generative": About(
        ("prompt", "conversation"), lambda _: ("exact_match", "answered"), {"limit": Count | None, "max_new_tokens": Count}
    ),
    f"{HOME}local.likelihood": About(
        ("conversation", "text"), lambda _: ("loss", "perplexity", "token_accuracy"), {"limit": Count | None, "max_length": Count}
    ),
    f"{HOME}sampled.sampled": About(
        ("prompt", "conversation"), _sampled, {**ANSWERED, "temperature": Positive, "samples": Count, "top_p": PositiveShare}
    ),
    f"{HOME}rewarded.rewarded": About(("prompt",), lambda _: ("reward",), ANSWERED),
    f"{HOME}judged.judged": About(("prompt",), lambda _: ("win_rate", "wins", "ties", "losses"), ANSWERED),
}  # fmt: skip


def about(target: str) -> About:
    """What is known of the suite whose function is `target`; of one that is not listed, nothing."""
    return ABOUT.get(target, About())
