"""Signs that online learning goes wrong, told in plain words, once each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any

log = logging.getLogger(__name__)

Values = Mapping[str, float]


@dataclass(frozen=True)
class Alarm:
    """reads: values it needs; steps without them do not count. sign: (values now, values at the start) -> whether something is wrong.
    patience: steps in a row before it is told. words: what it means and what to do; may name values."""

    name: str
    reads: tuple[str, ...]
    sign: Callable[[Values, Values], bool]
    patience: int
    words: str


ALARMS = (
    Alarm(
        "no variance",
        ("groups/informative", "reward/mean"),
        lambda now, _: now["groups/informative"] == 0.0 and not isnan(now["reward/mean"]),
        3,
        "no variance: all answers to every prompt got the same reward (mean {reward/mean:.3g}) in three rollouts, so there is nothing to "
        "learn from. The task is too hard or too easy for this model, or the reward never fires: look at the samples, start from a "
        "fine-tuned model, sample hotter, or shape the reward",
    ),
    Alarm(
        "nothing scored",
        ("reward/mean",),
        lambda now, _: isnan(now["reward/mean"]),
        1,
        "the reward could not judge any answer, so nothing is learnt. reward/failed/* in metrics.jsonl counts them by component; a reward "
        "that compares with a right answer needs rows that have one (the field `answer`)",
    ),
    Alarm(
        "truncated",
        ("answers/truncated",),
        lambda now, _: now["answers/truncated"] >= 0.95,
        3,
        "nearly all answers are cut off at rollout.max_new_tokens ({answers/truncated:.0%}): raise it, or teach the model to end its turn",
    ),
    Alarm(
        "length",
        ("answers/length", "reward/mean"),
        lambda now, start: now["answers/length"] > 2 * start["answers/length"] and now["reward/mean"] > start["reward/mean"],
        3,
        "the reward rises while answers have grown to {answers/length:.0f} tokens, more than twice those at the start: the reward may pay "
        "for length. Consider reward=[...,overlong], or method.loss=dr_grpo, which does not favour long wrong answers",
    ),
    Alarm(
        "entropy",
        ("entropy",),
        lambda now, start: now["entropy"] < 0.1 * start["entropy"],
        3,
        "entropy has collapsed to {entropy:.3g} nats a token, a tenth of what it was: answers become all alike. Raise "
        "method.loss.clip_high, method.entropy_coef or rollout.temperature, or lower optimizer.lr",
    ),
    Alarm(
        "kl",
        ("kl",),
        lambda now, _: now["kl"] > 1.0,
        1,
        "the policy is {kl:.2g} nats a token away from its reference: it is leaving the language it knew. Lower optimizer.lr or raise "
        "method.kl.coef",
    ),
    Alarm(
        "mismatch",
        ("mismatch/abs",),
        lambda now, _: now["mismatch/abs"] > 0.05,
        1,
        "sampler and trainer differ by {mismatch/abs:.2g} nats a token on the same answers: the sampler may not have the present weights, "
        "or computes in another precision. See method.importance",
    ),
    Alarm(
        "unscored",
        (),
        lambda now, _: not isnan(now.get("reward/mean", 0.0)) and any(n.startswith("reward/failed/") and v > 0 for n, v in now.items()),
        1,
        "some answers could not be scored and are left out; reward/failed/* in metrics.jsonl counts them",
    ),
)


class RewardWatch:
    """Reads what is logged of each step: rewards, lengths, entropy, divergences.

    told: names of the alarms that were told. runs: of each alarm, for how many steps in a row its sign was there. start: each value when
    it was first there. All three are in checkpoints, so that a run which goes on tells what an undisturbed one would have told.
    """

    def __init__(self) -> None:
        self.told: set[str] = set()
        self.runs: dict[str, int] = {}
        self.start: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"told": sorted(self.told), "runs": dict(self.runs), "start": dict(self.start)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.told, self.runs, self.start = set(state["told"]), dict(state["runs"]), dict(state["start"])

    def look(self, step: int, values: Values, *, leads: bool) -> None:
        """step: counted from 1. values: of this step; what a rollout shows comes with its first step. leads: whether to speak."""
        for name, value in values.items():
            self.start.setdefault(name, value)
        for alarm in ALARMS:
            if alarm.name not in self.told and values.keys() >= set(alarm.reads) and self._due(alarm, values):
                self.told.add(alarm.name)
                if leads:
                    log.warning("step %d: %s", step, alarm.words.format(**{**self.start, **values}))

    def _due(self, alarm: Alarm, values: Values) -> bool:
        self.runs[alarm.name] = self.runs.get(alarm.name, 0) + 1 if alarm.sign(values, self.start) else 0
        return self.runs[alarm.name] >= alarm.patience
