"""What a component of rewards, such as a trained reward model, says of a model's answers."""

from __future__ import annotations

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from posttrain.data.prepare import Prepared
from posttrain.evaluation.scores import Scores
from posttrain.evaluation.suites.local import facts
from posttrain.evaluation.suites.prompted import asking, stderr
from posttrain.evaluation.suites.result import SuiteResult
from posttrain.rewards.base import Reward
from posttrain.rewards.compose import RewardSet

NAME = "reward"


def rewarded(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    data: str | Prepared,
    reward: Reward,
    limit: int | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    seed: int = 0,
    format: str = "auto",
    system: str | None = None,
) -> SuiteResult:
    """`reward`: the mean over the prompts of what `reward` says of the answer; `unscored`: answers of which it could say nothing.

    Args:
        data: a file, folder, glob or hub id with rows of any known format that asks something, or prepared prompts; the command's default
            is what the run itself held out.
        reward: the component.
        limit: first prompts that are answered.
        max_new_tokens: most tokens of an answer.
        temperature: 0 = the likeliest answer.
        seed: decides the answers, where they are sampled.
        format: name of the rows' format; auto = detected.
        system: system message for conversations without one.
    """
    asked = asking(
        tokenizer, data=data, limit=limit, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, format=format, system=system
    )
    with RewardSet({NAME: reward}) as rewards:
        rewards.start(str(next(model.parameters()).device))  # what cannot be loaded is told before anything is answered
        samples = asked.answers(model, tokenizer)
        measured = rewards.measure(samples)
    values = measured.raw[0].numpy()
    known = ~np.isnan(values)
    names = np.array(asked.names)[known].tolist()
    lost = measured.failures.get(NAME)
    metrics = {NAME: float(values[known].mean()) if known.any() else float("nan"), f"{NAME}_stderr": stderr(values[known])}
    metrics |= {"n": float(known.sum()), "unscored": float((~known).sum())}
    rows = [
        {"example": number, "prompt": sample.prompt, "completion": sample.completion, NAME: value if np.isfinite(value) else None}
        for number, sample, value in zip(asked.numbers, samples, values.tolist(), strict=True)
    ]
    details = facts(asked.prepared) | ({"reasons": dict(lost.kinds), "for example": list(lost.examples)} if lost else {})
    return SuiteResult(metrics, rows, details, {NAME: Scores(names, values[known])} if known.any() else {})
