"""How far online runs went from their reference for the reward they earn, and whether what is measured elsewhere went along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from posttrain.evaluation.scores import Scores
from posttrain.evaluation.statistics.estimate import Estimate
from posttrain.evaluation.statistics.permutation import sign_flip
from posttrain.runs.comparison.analyse import ALPHA
from posttrain.runs.comparison.apart import apart, scores_at
from posttrain.runs.comparison.arms import Arm
from posttrain.runs.comparison.bounds import SHARE, bounds_of
from posttrain.runs.comparison.read import Run
from posttrain.runs.comparison.verdict import p_value
from posttrain.runs.records import read_metrics

KL, REWARD, HELD_OUT = "kl", "reward/mean", "val/reward"
FEWEST = 3  # measurements on the way, with fewer of which no course is seen


@dataclass(frozen=True)
class Drift:
    """A run's course. kl, reward [N]: nats a token from the reference, and the reward of training prompts' answers, at each rollout.

    held_kl, held [M]: the same divergence, and the held-out metric there. metric: its name. decides: whether it is the one that decides
    between arms. best: place of its best value. lost: by how much it is worse at the end. p: of its being as good at the end as at its
    best, times the M - 1 that the best was chosen from; NaN where no scores of examples were kept. gained: by how much the training
    reward rose since then.
    """

    seed: int
    kl: tuple[float, ...]
    reward: tuple[float, ...]
    held_kl: tuple[float, ...]
    held: tuple[float, ...]
    metric: str
    decides: bool
    best: int
    lost: float
    p: float
    gained: float

    def over_optimised(self, smallest: float) -> bool:
        """Whether reward was still earned while the held-out metric is shown to have fallen: beyond what the best of several noisy
        measurements is above the last by chance, and, where it decides, by no less than the smallest difference that matters.

        Gao, Schulman & Hilton, Scaling laws for reward model overoptimization, arXiv:2210.10760, section 3.
        """
        enough = self.lost >= smallest if self.decides else self.lost > 0
        return len(self.held) >= FEWEST and enough and self.p < ALPHA and self.gained > 0


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
        found = _drift(run.seed, kl, reward, courses[name], name, decides=name == metric, lower=lower and name == metric)
        return replace(found, p=chance(found, *_ends(part, found, list(courses[name])))) if found.held else found
    return None


def _drift(
    seed: int, kl: dict[int, float], reward: dict[int, float], held: dict[int, float], metric: str, *, decides: bool, lower: bool
) -> Drift:
    """What is measured after step s is of the policy that step s + 1 finds, whose divergence that step's line has."""
    held_kl = np.interp([step + 1 for step in held], list(kl), list(kl.values()))
    good = np.array(list(held.values())) * (-1 if lower else 1)
    best = int(good.argmax()) if len(good) else 0
    earned = np.array(list(reward.values()))
    since = earned[np.array(list(reward)) > list(held)[best]] if len(good) else earned[:0]
    window = max(1, len(since) // 4)
    gained = float(since[-window:].mean() - since[:window].mean()) if len(since) > 1 else 0.0
    return Drift(
        seed, tuple(kl[step] for step in reward), tuple(reward.values()), tuple(held_kl.tolist()), tuple(held.values()), metric, decides,
        best, float(good[best] - good[-1]) if len(good) else 0.0, float("nan"), gained,
    )  # fmt: skip


def _ends(part: Run, drift: Drift, steps: Sequence[int]) -> tuple[Scores | None, Scores | None]:
    """The scores of the best measurement and of the last, where they were kept."""
    first = scores_at(part.folder, steps[drift.best], drift.metric, drift.held[drift.best])
    return first, part.scores.get(drift.metric) or scores_at(part.folder, steps[-1], drift.metric, drift.held[-1])


def chance(drift: Drift, best: Scores | None, last: Scores | None) -> float:
    """p-value of the last measurement's being as good as the best one, by Bonferroni for the choice of that one.

    By flipping signs of examples where both kept them, else by as many independent ones as the last kept; NaN where it kept none.
    """
    chances = max(1, len(drift.held) - 1)
    if (found := apart(best, last)) is not None:
        return min(1.0, chances * sign_flip(found[1], rounds=max(10_000, int(20 * chances / ALPHA))))
    return float("nan") if last is None else min(1.0, chances * _p_unpaired(drift, last))


def _p_unpaired(drift: Drift, last: Scores) -> float:
    """As if both had been measured on other examples, which spread alike; shares as shares do. Wide where they were the same."""
    count, best = len(last.values), drift.held[drift.best]
    if count < 2:
        return float("nan")
    spread = float(last.values.var(ddof=1))
    is_share = bounds_of(drift.metric, [last.values[None]]) == SHARE and 0 <= best <= 1
    other = best * (1 - best) if is_share else spread
    return float(Estimate(np.asarray(drift.lost), np.asarray((spread + other) / count), np.asarray(count - 1.0)).p())


def drifts_of(arms: Sequence[Arm], metric: str, *, lower: bool) -> list[list[Drift]]:
    """Of each arm's runs that have one."""
    return [[found for run in arm.runs if (found := drift_of(run, metric, lower=lower)) is not None] for arm in arms]


def told(arms: Sequence[Arm], drifts: Sequence[Sequence[Drift]], smallest: float) -> list[str]:
    """The runs that were over-optimised, in words."""
    return [
        f"{arm.name}, seed {run.seed}: over-optimised. From a divergence of {run.held_kl[run.best]:.3g} nats a token on, {run.metric} got "
        f"worse by {run.lost:.3g} (p {p_value(run.p)}) while the reward in training rose by {run.gained:.3g}."
        for arm, runs in zip(arms, drifts, strict=True)
        for run in runs
        if run.over_optimised(smallest)
    ]
