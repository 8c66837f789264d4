"""What a rollout shows: numbers for the log, rows for a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from posttrain.functional.attended import attended
from posttrain.types import Rollout, Work

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.rollout.collect import Collector

ROWS = 8  # groups of which a table shows an answer or two


def rollout_metrics(
    rollout: Rollout,
    informative: np.ndarray,
    plain: Tensor,
    raw: np.ndarray,
    *,
    asked: int,
    names: Sequence[str],
    failures: Mapping[str, int],
) -> dict[str, float]:
    """Means over a rollout's answers: the reward and its components, lengths, how many were cut off, groups with and without variance.

    Rewards are means over the answers that could be scored; `answers/unscored` is the share of the others, from which nothing is learnt.

    informative: bool [P]. plain: [P, G] the reward, raw: [K, P, G] its components, as measured, before anything is normalised. asked:
    prompts gone through for it. names: of the components. failures: answers not scored.
    """
    total = plain.numpy()
    lengths = np.array([[len(c.tokens) for c in group.completions] for group in rollout.groups], np.float64)
    cut = np.array([[c.finish == "length" for c in group.completions] for group in rollout.groups])
    return {
        "reward/mean": mean(total),
        "reward/std": float(np.nanstd(total)) if not np.isnan(total).all() else float("nan"),
        **{f"reward/{name}": mean(part) for name, part in zip(names, raw, strict=True)},
        **{f"reward/failed/{name}": float(count) for name, count in failures.items() if count},
        "answers/length": float(lengths.mean()),
        "answers/longest": float(lengths.max()),
        "answers/truncated": float(cut.mean()),
        "answers/kept": float(rollout.kept.mean()),
        "answers/unscored": missing_share(total),
        "groups/informative": float(informative.mean()),
        "prompts/asked": float(asked),
    }


def mean(values: np.ndarray) -> float:
    """Of the values that are not NaN; NaN where there is none."""
    return float("nan") if np.isnan(values).all() else float(np.nanmean(values))


def missing_share(values: np.ndarray) -> float:
    """Of values that are NaN; 0 of none."""
    return float(np.isnan(values).sum() / max(values.size, 1))


def sampling_work(prompt: int, answers: Sequence[int]) -> Work:
    """Of sampling answers of these lengths to a prompt that is read once: an answer's last token is never read."""
    steps = [max(length - 1, 0) for length in answers]
    return Work(
        forward_tokens=prompt + sum(steps),
        forward_targets=1 + sum(steps),
        forward_pairs=float(attended(prompt, 0)) + sum(length * prompt + length * (length + 1) / 2 for length in steps),
        generated=sum(answers),
    )


def sample_rows(collector: Collector, rollout: Rollout, plain: np.ndarray, raw: np.ndarray) -> list[dict[str, Any]]:
    """The best and the worst answer of the first groups, as rows. plain, raw: as `rollout_metrics` has them.

    `reward` is what is measured, as in the metrics; `reward_made_ready`, where components are normalised, clipped or weighted by
    difficulty, what the answers are compared by.
    """
    components = collector.rewards.components
    made = any(one.normalise != "none" or one.difficulty or one.clip is not None for one in components.values())
    rows = []
    for place, group in enumerate(rollout.groups[:ROWS]):
        total = rollout.rewards.total[place].nan_to_num(nan=-np.inf)
        samples = list(collector.samples(group, place))
        for number in sorted({int(total.argmax()), int(total.argmin())}):
            sample, scores = samples[number], raw[:, place, number].tolist()
            rows.append(
                {
                    "prompt": str(sample.prompt[-1].get("content")),
                    "completion": sample.completion,
                    "expected": sample.answer,
                    "reward": float(plain[place, number]),
                    **({"reward_made_ready": float(rollout.rewards.total[place, number])} if made else {}),
                    **{f"reward/{name}": score for name, score in zip(components, scores, strict=True)},
                    "tokens": sample.length,
                    "finish": sample.finish,
                }
            )
    return rows
