"""Which of two models' answers a judge prefers, asked in both orders."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from posttrain.data.prepare import Prepared
from posttrain.evaluation.scores import Scores
from posttrain.evaluation.suites.local import facts
from posttrain.evaluation.suites.prompted import Asking, asking, stderr
from posttrain.evaluation.suites.result import SuiteResult
from posttrain.rewards.backends.base import Backend
from posttrain.rewards.base import Unscored
from posttrain.rewards.judge import CRITERIA, Comparisons, Verdict, agreed
from posttrain.types import Sample

log = logging.getLogger(__name__)

POINTS = {"a": 1.0, "tie": 0.5, "b": 0.0}


@dataclass(frozen=True)
class Duel:
    """An answer, the opponent's, and what the judge said: with the answer first, then with it second (already turned round)."""

    answer: Sample
    opponent: Sample
    first: Verdict | Unscored
    second: Verdict | Unscored

    @property
    def verdict(self) -> Verdict | Unscored:
        """Of both; a tie where they differ."""
        return agreed(self.first, self.second)


def judged(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    data: str | Prepared,
    backend: Backend,
    against: str,
    criteria: str = CRITERIA,
    reference: bool = True,
    limit: int | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    seed: int = 0,
    format: str = "auto",
    system: str | None = None,
) -> SuiteResult:
    """`win_rate` over the prompts, ties counting half, and `wins`, `ties`, `losses` as shares of them.

    Each pair is asked for in both orders, and is a tie where the verdicts differ (arXiv:2306.05685): `consistent` is the share of pairs
    where they do not, `first` the share of all decided verdicts that went to the answer shown first, 0.5 without a bias for positions.
    `unscored` pairs, for which the judge gave no verdict, count nowhere else. `length` and `against_length`: mean characters.

    Args:
        data: a file, folder, glob or hub id with rows of any known format that asks something, or prepared prompts; the command's default
            is what the run itself held out.
        backend: what judges.
        against: folder of a run, an artifact or a Hugging Face model, or hf://NAME[@REVISION], which answers the same prompts.
        criteria: what the judge looks at, in words.
        reference: whether it is told the expected answer, where there is one.
        limit: first prompts that are answered.
        max_new_tokens: most tokens of an answer.
        temperature: 0 = the likeliest answer.
        seed: decides the answers, where they are sampled.
        format: name of the rows' format; auto = detected.
        system: system message for conversations without one.
    """
    from posttrain.runs.against import opponent, opponent_folder

    if backend.stand_in:
        log.warning("no model judges: a stand-in rule does (%s). Name a judge: backend=openai or local, with its model", backend.stand_in)
    asked = asking(
        tokenizer, data=data, limit=limit, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, format=format, system=system
    )
    device = str(next(model.parameters()).device)
    backend.place(device)
    backend.start()  # what cannot be loaded is told before anything is answered
    answers = asked.answers(model, tokenizer)
    folder = opponent_folder(against)
    opponents = _opponents(asked, answers, tokenizer, folder, device)
    comparisons = Comparisons(backend, criteria=criteria)
    pairs = [(a.prompt, a.completion, b.completion, a.answer if reference else None) for a, b in zip(answers, opponents, strict=True)]
    duels = [Duel(a, b, *both) for a, b, both in zip(answers, opponents, comparisons.in_both_orders(pairs), strict=True)]
    details, scores = _kept(asked, duels)
    rows = [_row(*one) for one in zip(asked.numbers, duels, strict=True)]
    return SuiteResult(_metrics(duels), rows, {**details, "against": opponent(against, folder)}, scores)


def _opponents(asked: Asking, answers: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, folder: Path, device: str) -> list[Sample]:
    """The other model's answers to the same prompts."""
    from posttrain.runs.loaded import load

    other, its_tokenizer = load(folder, device=device)
    return asked.answers(other, its_tokenizer, asked.prompts_for(answers, tokenizer, its_tokenizer))


def _points(duels: Sequence[Duel]) -> np.ndarray:
    """Of each prompt [N]; NaN where the judge gave no verdict."""
    return np.array([float("nan") if isinstance(duel.verdict, Unscored) else POINTS[duel.verdict] for duel in duels])


def _metrics(duels: Sequence[Duel]) -> dict[str, float]:
    points = _points(duels)
    known = points[~np.isnan(points)]
    lengths = {
        "length": float(np.mean([len(duel.answer.completion) for duel in duels])),
        "against_length": float(np.mean([len(duel.opponent.completion) for duel in duels])),
    }
    counts = {"n": float(len(known)), "unscored": float(len(points) - len(known))}
    if not len(known):
        return {"win_rate": float("nan"), **counts, **lengths}
    both = [(str(duel.first), str(duel.second)) for duel in duels if not isinstance(duel.verdict, Unscored)]
    decided = [verdict == shown for pair in both for verdict, shown in zip(pair, "ab", strict=True) if verdict != "tie"]
    return {
        "win_rate": float(known.mean()),
        "win_rate_stderr": stderr(known),
        "wins": float((known == 1).mean()),
        "ties": float((known == 0.5).mean()),
        "losses": float((known == 0).mean()),
        "consistent": sum(one == other for one, other in both) / len(both),
        **({"first": sum(decided) / len(decided)} if decided else {}),
        **counts,
        **lengths,
    }


def _row(number: int, duel: Duel) -> dict[str, Any]:
    verdict = duel.verdict
    row = {"example": number, "prompt": duel.answer.prompt, "completion": duel.answer.completion, "against": duel.opponent.completion}
    if isinstance(verdict, Unscored):
        return {**row, "verdict": None, "reason": verdict.reason}
    return {**row, "verdict": {"a": "win", "b": "loss", "tie": "tie"}[verdict], "consistent": duel.first == duel.second}


def _kept(asked: Asking, duels: Sequence[Duel]) -> tuple[dict[str, Any], dict[str, Scores]]:
    """Details, with why pairs have no verdict; and the single prompts' scores."""
    points = _points(duels)
    known = ~np.isnan(points)
    reasons = Counter(duel.verdict.reason.split(":")[0] for duel in duels if isinstance(duel.verdict, Unscored))
    names = np.array(asked.names)[known].tolist()
    values = {
        "win_rate": points,
        "wins": (points == 1).astype(float),
        "ties": (points == 0.5).astype(float),
        "losses": (points == 0).astype(float),
    }
    scores = {name: Scores(names, found[known]) for name, found in values.items()} if known.any() else {}
    return facts(asked.prepared) | ({"reasons": dict(reasons)} if reasons else {}), scores
