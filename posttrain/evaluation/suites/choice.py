"""Multiple choice by log-likelihood on a local file: which option does the model find likeliest after the question?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from posttrain.data.rows import BadRow
from posttrain.data.sources import find_files, read_file
from posttrain.data.tree import tree_of
from posttrain.errors import DataError, Problem
from posttrain.evaluation.scores import Scores, names_of
from posttrain.evaluation.scoring import micro_batches, scorer
from posttrain.evaluation.suites.harness import safe_name
from posttrain.evaluation.suites.questions import Question, parse
from posttrain.evaluation.suites.result import SuiteResult
from posttrain.types import TokenizedExample


def multiple_choice(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    data: str,
    limit: int | None = None,
    max_tokens: int = 16384,
    compare: Literal["letter", "text"] = "letter",
    instruction: str = "Answer with the letter of the right option only.",
) -> SuiteResult:
    """Accuracy of the likeliest option, by subject where the rows name one.

    Args:
        data: a file with the rows of VNHSGE, ViLLM, ARC or MMLU. Rows without a usable question are left out and counted.
        limit: first rows that are read.
        max_tokens: tokens of one forward; a question is computed once for all its options.
        compare: the options' letters, or their texts (also per character: accuracy_norm).
        instruction: added after the question.

    Raises:
        DataError: the file cannot be read, or no row has a usable question.
    """
    questions, left_out = read_questions(data, limit)
    if compare == "text" and not all(any(question.options) for question in questions):
        raise DataError(Problem(data, "the options stand inside the questions, so their texts cannot be compared", "compare=letter"))
    trees = [_tree(tokenizer, question, compare, instruction) for question in questions]
    rows = [_row(q, scores, compare) for q, scores in zip(questions, _scores(model, trees, max_tokens), strict=True)]
    details = {"left_out": sum(left_out.values()), "reasons": dict(left_out.most_common(10))}
    names = names_of(f"{question.text}\0{question.labels[question.answer]}" for question in questions)
    measured = {"accuracy": "correct", "accuracy_norm": "correct_norm"}
    scores = {name: Scores(names, np.array([float(row[key]) for row in rows])) for name, key in measured.items() if key in rows[0]}
    return SuiteResult(_metrics(rows), rows, details, scores)


def read_questions(data: str, limit: int | None) -> tuple[list[Question], Counter[str]]:
    """The usable questions of a file, folder or glob, and how many rows were left out for which reason."""
    questions: list[Question] = []
    left_out: Counter[str] = Counter()
    for row in islice((row for file in find_files(data) for row in read_file(file)), limit):
        found = row.reason if isinstance(row, BadRow) else parse(row.value)
        if isinstance(found, Question):
            questions.append(found)
        else:
            left_out[found] += 1
    if not questions:
        reason = left_out.most_common(1)[0][0] if left_out else "it is empty"
        raise DataError(Problem(data, f"no usable question: {reason}"))
    return questions, left_out


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A question as the start of an answer: through the chat template where there is one, else as plain text."""
    if tokenizer.chat_template is None:
        return list(tokenizer(f"{text}\nAnswer:")["input_ids"])
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
    return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])


def _tree(tokenizer: PreTrainedTokenizerBase, question: Question, compare: str, instruction: str) -> TokenizedExample:
    """One tree a question: the prompt, then one leaf an option, in order."""
    prompt = prompt_ids(tokenizer, f"{question.text}\n{instruction}".strip())
    gap = " " if tokenizer.chat_template is None else ""
    answers = question.labels if compare == "letter" else question.options
    leaves = [tokenizer(gap + answer, add_special_tokens=False)["input_ids"] for answer in answers]
    return tree_of([(np.array(prompt + leaf), np.repeat([0.0, 1.0], [len(prompt), len(leaf)])) for leaf in leaves])


def _scores(model: nn.Module, trees: Sequence[TokenizedExample], max_tokens: int) -> Iterator[list[float]]:
    """For every question, the log-likelihood of each option."""
    with scorer(model) as score:
        for tree in micro_batches(trees, max_tokens=max_tokens):
            sums = np.zeros(len(tree.segments))
            np.add.at(sums, tree.segment.numpy(), score(tree).logps.double().cpu().numpy())
            examples, leaf = tree.example.numpy(), tree.segments[:, 2].numpy() >= 0
            for index in range(int(examples.max()) + 1):
                yield sums[(examples == index) & leaf].tolist()


def _row(question: Question, scores: Sequence[float], compare: str) -> dict[str, Any]:
    row = {
        "question": question.text,
        "expected": question.labels[question.answer],
        "chosen": question.labels[int(np.argmax(scores))],
        "correct": int(np.argmax(scores)) == question.answer,
        "logps": dict(zip(question.labels, scores, strict=True)),
        "subject": question.subject,
    }
    if compare == "text":
        lengths = np.array([max(1, len(option)) for option in question.options])
        row["correct_norm"] = int(np.argmax(np.array(scores) / lengths)) == question.answer
    return row


def _metrics(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    metrics = {"accuracy": float(np.mean([row["correct"] for row in rows])), "n": float(len(rows))}
    if "correct_norm" in rows[0]:
        metrics["accuracy_norm"] = float(np.mean([row["correct_norm"] for row in rows]))
    by_subject: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        by_subject[row["subject"]].append(row["correct"])
    return metrics | {safe_name(f"{name}/accuracy"): float(np.mean(hits)) for name, hits in sorted(by_subject.items()) if name}
