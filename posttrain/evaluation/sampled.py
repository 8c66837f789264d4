"""Several answers to each question: how often one of k is right, and what the majority of them says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posttrain.rewards.agreement import agrees, same_value


def pass_at_k(right: np.ndarray, samples: int, k: int) -> np.ndarray:
    """Probability that at least one of k answers is right, without bias, of each question [N]: 1 - C(n - c, k) / C(n, k).

    right: int [N], how many of the n = `samples` answers are. Chen et al., arXiv:2107.03374, eq. 1. Raises ValueError for k > n.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {max(k, 1)} samples, got {samples}")
    wrong = samples - np.asarray(right)[..., None]
    return np.asarray(1.0 - np.clip((wrong - np.arange(k)) / (samples - np.arange(k)), 0.0, None).prod(-1))


def majority(extracted: Sequence[str | None], expected: str) -> float:
    """Whether the answer that most name is the expected one (Wang et al., arXiv:2203.11171); where several tie, the share of them that is.

    Answers are one where they are the same number or text; those that name none have no vote. 0 where none has.
    """
    votes: list[list[str]] = []
    for answer in extracted:
        if answer is not None:
            group = next((group for group in votes if same_value(group[0], answer)), None)
            if group is None:
                votes.append(group := [])
            group.append(answer)
    most = max(map(len, votes), default=0)
    leading = [group[0] for group in votes if len(group) == most]
    return sum(agrees(answer, expected) for answer in leading) / len(leading) if leading else 0.0
