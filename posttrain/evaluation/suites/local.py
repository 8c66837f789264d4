"""Suites on a local file, prepared exactly as training data are: generative exact match, and likelihood of the targets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from rich.progress import track
from torch import nn
from transformers import PreTrainedTokenizerBase

from posttrain.data.detection import format_kind
from posttrain.data.examples import Examples
from posttrain.data.prepare import CheckableExample, Prepared, prepare
from posttrain.errors import DataError, Problem
from posttrain.evaluation.exact_match import ExactMatch, exact_match, merge
from posttrain.evaluation.generation import generator_of
from posttrain.evaluation.scores import Scores, content_of, names_of
from posttrain.evaluation.scoring import micro_batches, scorer
from posttrain.evaluation.suites.result import SuiteResult
from posttrain.evaluation.validation import likelihood_of, validate
from posttrain.functional.supervised import likelihood_metrics
from posttrain.types import TokenStats, TokenTree

Kind = Literal["auto", "conversation", "text"]
PART = 128  # prompts between two moves of the progress bar
ANY_LENGTH = 1 << 30


def generative(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    data: str | Prepared,
    limit: int | None = None,
    max_new_tokens: int = 512,
    batch_tokens: int = 16384,
    format: str = "auto",
    system: str | None = None,
) -> SuiteResult:
    """Greedy answers to the prompts of a file, compared with its checkable answers.

    Args:
        data: a file, folder, glob or hub id with rows of any known format that has an answer (GSM8K, MATH ...), or prepared data;
            the command's default is what the run itself held out.
        limit: first rows that are read.
        max_new_tokens: most tokens of an answer.
        batch_tokens: most tokens, prompts and answers, that are answered at once.
        format: name of the rows' format; auto = detected.
        system: system message for conversations without one.

    Raises:
        DataError: the file cannot be read, or no row has a checkable answer.
    """
    # A worked solution of any length may stand in the file; only the prompt and the final answer matter here.
    prepared = prepared_of(data, tokenizer, kind="conversation", max_length=ANY_LENGTH, limit=limit, format=format, system=system)
    found = list(prepared.val_checkable)[:limit]
    if not found:
        raise DataError(Problem("data", "no row has a checkable answer", "suite=validation measures the loss on any data"))
    generator = generator_of(model, tokenizer, held=batch_tokens)
    parts = [
        exact_match(generator, tokenizer, part, max_new_tokens=max_new_tokens)
        for part in track(_parts(found), "answering", disable=not sys.stderr.isatty(), transient=True)
    ]
    whole: ExactMatch = merge(parts)
    metrics = {"exact_match": whole.accuracy, "exact_match_stderr": _stderr(whole.accuracy, whole.n), "n": float(whole.n)}
    metrics["answered"] = sum(c.extracted is not None for c in whole.checked) / whole.n
    answered = np.array([float(c.extracted is not None) for c in whole.checked])
    scores = {"exact_match": whole.scores, "answered": replace(whole.scores, values=answered)}
    return SuiteResult(metrics, whole.rows, facts(prepared), scores)


def likelihood(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    data: str | Prepared,
    limit: int | None = None,
    max_tokens: int = 16384,
    max_length: int = 1024,
    format: str = "auto",
    kind: Kind = "auto",
    system: str | None = None,
) -> SuiteResult:
    """Loss (nats a target token), perplexity and token accuracy on the tokens that training would target.

    Args:
        data: a file, folder, glob or hub id with rows of any known format, or prepared data; the command's default is what the run itself
            held out.
        limit: first rows that are read.
        max_tokens: tokens of one forward.
        max_length: tokens of an example; longer documents are split, longer conversations cut on the right.
        format: name of the rows' format; auto = detected.
        kind: conversation (loss on assistant turns) or text (loss on all); auto = text where the rows hold nothing else.
        system: system message for conversations without one.
    """
    chosen = kind if kind != "auto" else _kind_of(_node(data, format, system)) if isinstance(data, str) else "conversation"
    prepared = prepared_of(data, tokenizer, kind=chosen, max_length=max_length, limit=limit, format=format, system=system)
    examples = prepared.val
    assert examples is not None, "the data were given as validation data"
    rows: list[dict[str, Any]] = []
    with scorer(model) as score:
        batches = micro_batches((examples[i] for i in range(len(examples))), max_tokens=max_tokens)
        sums = validate(likelihood_of(_recording(score, rows)), batches)
    metrics = {**likelihood_metrics(sums), "tokens": sums["sum_weight"]}
    return SuiteResult(metrics, rows, facts(prepared) | {"kind": chosen}, {"loss": _loss_scores(examples, rows)})


def _loss_scores(examples: Examples, rows: Sequence[Mapping[str, Any]]) -> Scores:
    """The loss of each example with a target, weighted by its targets. rows: in the order of the examples."""
    some = [
        (name, row)
        for name, row in zip(names_of(content_of(examples[index]) for index in range(len(examples))), rows, strict=True)
        if row["tokens"] > 0
    ]
    losses, tokens = (np.array([row[key] for _, row in some], dtype=float) for key in ("loss", "tokens"))
    return Scores([name for name, _ in some], losses, tokens)


def prepared_of(
    data: str | Prepared,
    tokenizer: PreTrainedTokenizerBase,
    *,
    kind: str,
    max_length: int,
    limit: int | None,
    format: str,
    system: str | None,
) -> Prepared:
    """The file as validation data. Preparation wants training data too: the same file, which its cache makes free."""
    if isinstance(data, Prepared):
        return data
    return prepare(_node(data, format, system), tokenizer, kind=kind, max_length=max_length, limit=limit)


def _node(data: str, format: str, system: str | None) -> dict[str, Any]:
    return {"name": "evaluation", "train": data, "val": data, "format": format, "system": system}


def _kind_of(node: Mapping[str, Any]) -> str:
    """As what rows are measured: documents where they are plain text; everything else is conversations."""
    return "text" if format_kind(node, kinds=("conversation", "text")) == "text" else "conversation"


def _parts(items: Sequence[CheckableExample]) -> list[Sequence[CheckableExample]]:
    return [items[start : start + PART] for start in range(0, len(items), PART)]


def _stderr(share: float, count: int) -> float:
    """Standard error of a share of `count` independent trials."""
    return float((share * (1 - share) / count) ** 0.5)


def _recording(score: Callable[[TokenTree], TokenStats], rows: list[dict[str, Any]]) -> Callable[[TokenTree], TokenStats]:
    """`score`, adding one row an example to `rows` as it goes."""

    def recorded(tree: TokenTree) -> TokenStats:
        stats = score(tree)
        # What is compared stays on the host: `validate` multiplies with the tree's weights, which are there.
        stats = TokenStats(stats.logps.cpu(), correct=None if stats.correct is None else stats.correct.cpu())
        rows.extend(_example_rows(tree, stats, first=len(rows)))
        return stats

    return recorded


def _example_rows(tree: TokenTree, stats: TokenStats, *, first: int) -> Iterator[dict[str, Any]]:
    weight = tree.weight.double().numpy()
    owner = tree.example[tree.segment].numpy()
    nll = -stats.logps.double().numpy() * weight
    for index in range(int(tree.example.max()) + 1):
        mine = owner == index
        total = float(weight[mine].sum())
        yield {"example": first + index, "tokens": total, "loss": float(nll[mine].sum()) / total if total else float(np.nan)}


def facts(prepared: Prepared) -> dict[str, Any]:
    """What preparation read and left out."""
    report = prepared.report.sources[-1]
    kept = ("format", "digest", "rows", "examples", "truncated", "lost")
    return {name: getattr(report, name) for name in kept}
