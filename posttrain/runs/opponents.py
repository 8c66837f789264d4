"""What a judge that compares says of held-out answers: how often it prefers them to those that the run's first measurement found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from posttrain.methods.parts.collectives import gather
from posttrain.rollout.collect import Collector
from posttrain.rollout.measures import mean, missing_share
from posttrain.runs.files import write_atomic
from posttrain.types import Completion, Group


@dataclass
class Opponents:
    """The first answers, by prompt; in a file, for runs that are resumed. leads: whether this process writes it."""

    path: Path
    leads: bool

    def win_rates(self, held_out: Collector, groups: Sequence[Group], *, step: int) -> dict[str, float]:
        """`val/win_rate/NAME` of this rank's `groups` of one answer, over all ranks; nothing when there is no earlier measurement.

        Answers without a verdict are in no mean; `val/unscored/NAME` is their share, where there are some.
        """
        rewards = held_out.rewards.comparing()
        if not rewards.components:
            return {}
        first = self._before(step)
        if first is None:
            self._keep(groups, step)
            return {}
        duels = [replace(group, completions=(*group.completions, first[group.example])) for group in groups if group.example in first]
        measured = rewards.measure([sample for place, duel in enumerate(duels) for sample in held_out.samples(duel, place)]).raw
        whole = torch.cat(gather(measured[:, ::2]), 1).numpy()
        single = dict(zip(rewards.components, whole, strict=True))
        missing = {f"val/unscored/{name}": missing_share(values) for name, values in single.items()}
        return {f"val/win_rate/{name}": mean(values) for name, values in single.items()} | {
            n: share for n, share in missing.items() if share
        }

    def _before(self, step: int) -> dict[int, Completion] | None:
        """The answers that were kept at an earlier step than this one."""
        if not self.path.is_file():
            return None
        kept = json.loads(self.path.read_text(encoding="utf-8"))
        if kept["step"] >= step:  # of a process that went further than the checkpoint this one began from
            return None
        return {int(number): _completion(*answer) for number, answer in kept["answers"].items()}

    def _keep(self, groups: Sequence[Group], step: int) -> None:
        mine = {str(group.example): [group.completions[0].tokens.tolist(), group.completions[0].finish] for group in groups}
        answers = {number: answer for part in gather(mine) for number, answer in part.items()}
        if self.leads:
            self.path.parent.mkdir(exist_ok=True)
            write_atomic(self.path, json.dumps({"step": step, "answers": answers}))


def _completion(tokens: list[int], finish: str) -> Completion:
    ids = np.array(tokens, np.int32)
    return Completion(ids, np.zeros(len(ids), np.float32), "stop" if finish == "stop" else "length")
