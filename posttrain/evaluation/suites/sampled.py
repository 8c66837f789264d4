"""Verifiable accuracy of several sampled answers to each question, beside the greedy one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from posttrain.data.prepare import CheckableExample, Prepared
from posttrain.errors import ConfigError, DataError, Problem
from posttrain.evaluation.exact_match import Checked, ExactMatch, check
from posttrain.evaluation.generation import generator_of
from posttrain.evaluation.sampled import majority, pass_at_k
from posttrain.evaluation.scores import Scores
from posttrain.evaluation.suites.about import powers
from posttrain.evaluation.suites.local import ANY_LENGTH, facts, prepared_of
from posttrain.evaluation.suites.prompted import seed_of, stderr
from posttrain.evaluation.suites.result import SuiteResult
from posttrain.rollout.base import Generator, Request, Sampling


@dataclass(frozen=True)
class Asked:
    """A question's answers after the check: the greedy one, and the sampled ones."""

    greedy: Checked
    sampled: tuple[Checked, ...]


def sampled(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    data: str | Prepared,
    samples: int = 8,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    limit: int | None = None,
    max_new_tokens: int = 512,
    format: str = "auto",
    system: str | None = None,
) -> SuiteResult:
    """`pass_at_K` for K = 1, 2, 4 ... samples, `maj_at_K` of all samples, and `greedy`, against checkable answers.

    Args:
        data: a file, folder, glob or hub id with rows of any known format that has an answer, or prepared data; the command's default is
            what the run itself held out.
        samples: answers sampled to each question.
        temperature: of the samples, above 0.
        top_p: smallest set of tokens with this much probability that is sampled from.
        seed: decides all samples, whatever else is asked.
        limit: first rows that are read.
        max_new_tokens: most tokens of an answer.
        format: name of the rows' format; auto = detected.
        system: system message for conversations without one.

    Raises:
        ConfigError: for numbers that nothing can be sampled with. DataError: the file cannot be read, or no row has a checkable answer.
    """
    drawn = _sampling(samples, temperature, top_p, max_new_tokens)
    prepared = prepared_of(data, tokenizer, kind="conversation", max_length=ANY_LENGTH, limit=limit, format=format, system=system)
    found = list(prepared.val_checkable)[:limit]
    if not found:
        raise DataError(Problem("data", "no row has a checkable answer", "suite=validation measures the loss on any data"))
    asked = _ask(generator_of(model, tokenizer), tokenizer, found, drawn, samples, seed)
    scores = _scores(asked, samples)
    metrics = {name: some.mean for name, some in scores.items()}
    errors = {f"{name}_stderr": stderr(some.values.reshape(len(asked), -1).mean(1)) for name, some in scores.items()}
    rows = [row | {"sample": place} for one in asked for place, row in enumerate(map(asdict, (one.greedy, *one.sampled)), -1)]
    return SuiteResult({**metrics, **errors, "n": float(len(asked))}, rows, facts(prepared), scores)


def _sampling(samples: int, temperature: float, top_p: float, max_new_tokens: int) -> Sampling:
    problems = [Problem(f"samples={samples}", "expected 1 or more")] if samples < 1 else []
    if temperature <= 0:
        problems.append(Problem(f"temperature={temperature}", "expected a number above 0", "suite=exact_match answers greedily"))
    if problems:
        raise ConfigError(problems)
    try:
        return Sampling(max_new_tokens, temperature=temperature, top_p=top_p)
    except ValueError as error:
        raise ConfigError(Problem("eval suite=sampled", str(error))) from error


def _ask(
    generator: Generator,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[CheckableExample],
    drawn: Sampling,
    samples: int,
    seed: int,
) -> list[Asked]:
    prompts = [np.asarray(question.prompt_ids) for question in questions]
    first = generator.generate([Request(ids, 1, 0) for ids in prompts], sampling=Sampling(drawn.max_new_tokens, temperature=0.0))
    others = generator.generate([Request(ids, samples, seed_of(ids, seed)) for ids in prompts], sampling=drawn)

    def checked(question: CheckableExample, tokens: np.ndarray) -> Checked:
        return check(question, str(tokenizer.decode(tokens, skip_special_tokens=True)))

    return [
        Asked(checked(question, one[0].tokens), tuple(checked(question, answer.tokens) for answer in some))
        for question, one, some in zip(questions, first, others, strict=True)
    ]


def _scores(asked: Sequence[Asked], samples: int) -> dict[str, Scores]:
    """By metric; pass_at_1 keeps each sample's own, the others one value a question."""
    greedy = ExactMatch(tuple(one.greedy for one in asked)).scores
    names, right = list(greedy.examples), np.array([[float(answer.correct) for answer in one.sampled] for one in asked])
    found = {
        "greedy": greedy,
        "pass_at_1": Scores(
            np.repeat(names, samples).tolist(), right.ravel(), samples=np.tile(np.arange(samples, dtype=np.int32), len(asked))
        ),
    }
    for k in powers(samples)[1:]:
        found[f"pass_at_{k}"] = Scores(names, pass_at_k(right.sum(1), samples, k))
    votes = [majority([answer.extracted for answer in one.sampled], one.greedy.expected) for one in asked]
    return found | {f"maj_at_{samples}": Scores(names, np.array(votes))}
