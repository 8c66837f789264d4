"""How far online runs went from their reference for the reward they earn, and whether what is measured elsewhere went along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posttrain.runs.comparison.arms import Arm
from posttrain.runs.comparison.read import Run
from posttrain.runs.records import read_metrics

KL, REWARD, HELD_OUT = "kl", "reward/mean", "val/reward"
FEWEST = 3  # measurements on the way, with fewer of which no course is seen


@dataclass(frozen=True)
class Drift:
    """A run's course. kl, reward [N]: nats a token from the reference, and the reward of training prompts' answers, at each rollout.

    held_kl, held [M]: the same divergence, and the held-out metric there. metric: its name. best: place of its best value. lost: by how
    much it is worse at the end. gained: by how much the training reward rose since then.
    """

    seed: int
    kl: tuple[float, ...]
    reward: tuple[float, ...]
    held_kl: tuple[float, ...]
    held: tuple[float, ...]
    metric: str
    best: int
    lost: float
    gained: float

    def over_optimised(self, smallest: float) -> bool:
        """Whether reward was still earned while the held-out metric fell by more than the smallest difference that matters.

        Gao, Schulman & Hilton, Scaling laws for reward model overoptimization, arXiv:2210.10760, section 3.
        """
        return len(self.held) >= FEWEST and self.lost >= smallest and self.gained > 0


def drift_of(run: Run, metric: str, *, lower: bool) -> Drift | None:
    """Of a run's last stage that sampled answers and had a reference; None where there is none.

    The metric that decides where it was measured often enough on the way, else the held-out reward.
    """
    for part in reversed(run.parts):
        rows = read_metrics(part.folder / "metrics.jsonl")
        kl = {int(row["step"]): float(row[KL]) for row in rows if KL in row}
        reward = {int(row["step"]): float(row[REWARD]) for row in rows if REWARD in row and int(row["step"]) in kl}
        if len(reward) < 2:
            continue
        courses = {name: {int(row["step"]): float(row[name]) for row in rows if name in row} for name in (metric, HELD_OUT)}
        name = metric if len(courses[metric]) >= FEWEST or len(courses[metric]) >= len(courses[HELD_OUT]) else HELD_OUT
        return _drift(run.seed, kl, reward, courses[name], name, lower=lower and name == metric)
    return None


def _drift(seed: int, kl: dict[int, float], reward: dict[int, float], held: dict[int, float], metric: str, *, lower: bool) -> Drift:
    """What is measured after step s is of the policy that step s + 1 finds, whose divergence that step's line has."""
    held_kl = np.interp([step + 1 for step in held], list(kl), list(kl.values()))
    good = np.array(list(held.values())) * (-1 if lower else 1)
    best = int(good.argmax()) if len(good) else 0
    earned = np.array(list(reward.values()))
    since = earned[np.array(list(reward)) > list(held)[best]] if len(good) else earned[:0]
    window = max(1, len(since) // 4)
    gained = float(since[-window:].mean() - since[:window].mean()) if len(since) > 1 else 0.0
    return Drift(
        seed, tuple(kl[step] for step in reward), tuple(reward.values()), tuple(held_kl.tolist()), tuple(held.values()), metric, best,
        float(good[best] - good[-1]) if len(good) else 0.0, gained,
    )  # fmt: skip


def drifts_of(arms: Sequence[Arm], metric: str, *, lower: bool) -> list[list[Drift]]:
    """Of each arm's runs that have one."""
    return [[found for run in arm.runs if (found := drift_of(run, metric, lower=lower)) is not None] for arm in arms]


def told(arms: Sequence[Arm], drifts: Sequence[Sequence[Drift]], smallest: float) -> list[str]:
    """The runs that were over-optimised, in words."""
    return [
        f"{arm.name}, seed {run.seed}: over-optimised. From a divergence of {run.held_kl[run.best]:.3g} nats a token on, {run.metric} got "
        f"worse by {run.lost:.3g} while the reward in training rose by {run.gained:.3g}."
        for arm, runs in zip(arms, drifts, strict=True)
        for run in runs
        if run.over_optimised(smallest)
    ]
