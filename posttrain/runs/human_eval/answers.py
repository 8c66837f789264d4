"""Answers of arms to the same held-out prompts: those that runs kept, else greedy ones of their artifacts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from posttrain.errors import ConfigError, DataError, Problem
from posttrain.runs.arguments import find_artifact
from posttrain.runs.base_config import load_config
from posttrain.runs.data_record import check_held_out
from posttrain.runs.human_eval.arms import Arm, last_stage

if TYPE_CHECKING:
    from posttrain.data.chat import Chat

SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class Question:
    """A held-out prompt. shown: as annotators read it. key: what tells it from others. messages: what is asked, None where kept as text."""

    key: str
    shown: str
    reference: str
    source: str
    messages: tuple[Mapping[str, Any], ...] | None = None


@dataclass(frozen=True)
class Pool:
    """What can be shown: questions that every run has. kept: the answers of each run by question; None: they are to be generated."""

    questions: list[Question]
    kept: dict[Path, dict[str, str]] | None


def pool(arms: Sequence[Arm]) -> Pool:
    """Questions that all runs have in common. Raises ConfigError or DataError where there is none."""
    runs = [run for arm in arms for run in arm.runs]
    rows = {run: kept_rows(last_stage(run)) for run in runs}
    if all(rows.values()):
        found = {run: {_key(row["prompt"], row["expected"]): row for row in some} for run, some in rows.items()}
        common = [key for key in found[runs[0]] if all(key in some for some in found.values())]
        if common:
            first = found[runs[0]]
            kept = {run: {key: str(some[key]["completion"]) for key in common} for run, some in found.items()}
            return Pool(_kept_questions(last_stage(runs[0]), [first[key] for key in common]), kept)
    found_questions = [held_out(last_stage(run)) for run in runs]
    common_keys = set.intersection(*({question.key for question in some} for some in found_questions))
    questions = [question for question in found_questions[0] if question.key in common_keys]
    if not questions:
        hint = "give all runs the same held-out data (data.val=FILE): a part cut off from the training data depends on the seed"
        raise DataError(Problem("runs", "there is no prompt that all of them held out", hint))
    return Pool(list({question.key: question for question in questions}.values()), None)


def _key(prompt: str, reference: str) -> str:
    return f"{prompt}\0{reference}"


def kept_rows(folder: Path) -> list[dict[str, Any]]:
    """The answers a run kept of its last evaluation; none where it made none. Raises DataError for a broken file."""
    file = folder / SAMPLES
    if not file.is_file():
        return []
    rows, problems = [], []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):  # texts may hold other line ends
        if not line:
            continue
        try:
            row = json.loads(line)
            rows.append({name: row[name] for name in ("example", "prompt", "completion", "expected")})
        except (ValueError, KeyError, TypeError) as error:
            problems.append(Problem(f"{file}:{number}", f"is no kept answer: {type(error).__name__} {error}"))
    if problems:
        raise DataError(problems)
    return rows


def _kept_questions(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Question]:
    """Without the chat template's marks, and with the source that each came from."""
    from posttrain.data.chat import Chat
    from posttrain.runs.inputs import load_inputs

    config = load_config(folder)
    tokenizer, prepared = load_inputs(config)
    check_held_out(folder, prepared)
    chat = Chat(tokenizer, config["data"].get("template_kwargs") or {})
    assert prepared.val is not None
    names, sources = prepared.val.names, prepared.val.source_of
    count = len(prepared.val)
    if stale := [row["example"] for row in rows if not 0 <= int(row["example"]) < count]:
        raise DataError(Problem(str(folder / SAMPLES), f"names example {stale[0]}, but the run held {count} out", "was the data changed?"))
    return [
        Question(
            _key(row["prompt"], row["expected"]), without_template(str(row["prompt"]), chat), str(row["expected"]),
            names[int(sources[int(row["example"])])],
        )
        for row in rows
    ]  # fmt: skip


def without_template(prompt: str, chat: Chat) -> str:
    """What the user asks, where the prompt is one question in the chat template; else the prompt as the model sees it."""
    probe = "question"
    before, _, after = chat.render([{"role": "user", "content": probe}], (), prompt=True).rpartition(probe)
    inside = prompt.startswith(before) and prompt.endswith(after) and len(prompt) >= len(before) + len(after)
    return prompt[len(before) : len(prompt) - len(after)] if inside else prompt


def held_out(folder: Path) -> list[Question]:
    """What a run held out, as questions: its validation data, of a part cut off from the training data the same rows."""
    from posttrain.data.prepare import prepare
    from posttrain.runs.inputs import load_inputs

    config = load_config(folder)
    tokenizer, own = load_inputs(config)
    check_held_out(folder, own)
    if own.val is None:
        raise DataError(Problem(f"runs: {folder}", "the run held no examples out", "train with data.val=FILE or data.val_fraction"))
    asked = prepare(config["data"], tokenizer, kind="prompt", max_length=config["max_length"], limit=config["limit"])
    apart = any(report.part == "val" for report in own.report.sources)
    mine = {own.val.value("origin", index) for index in range(len(own.val))}
    sets = [asked.val] if apart else [asked.train, asked.val]
    return [
        _question(found, int(index))
        for found in sets
        if found is not None
        for index in np.arange(len(found))
        if apart or found.value("origin", int(index)) in mine
    ]


def _question(found: Any, index: int) -> Question:
    messages = tuple(json.loads(found.value("facts", index))["prompt"])
    shown = (
        str(messages[0]["content"]) if len(messages) == 1
        else "\n\n".join(f"{message['role']}: {message.get('content') or ''}" for message in messages)
    )  # fmt: skip
    reference = found.value("answer", index) or ""
    return Question(
        _key(json.dumps(messages, sort_keys=True), reference), shown, reference, found.names[int(found.source_of[index])], messages
    )


def generated(run: Path, questions: Sequence[Question], *, max_new_tokens: int, device: str | None) -> Iterator[str]:
    """Greedy answers of a run's artifact."""
    from posttrain.data.chat import Chat
    from posttrain.data.spans import encode_ids
    from posttrain.evaluation.generation import generator_of, greedy
    from posttrain.runs.loaded import load

    folder = find_artifact(str(last_stage(run)))
    model, tokenizer = load(folder, device=device)
    chat = Chat(tokenizer, load_config(last_stage(run))["data"].get("template_kwargs") or {})
    texts = [chat.render(chat.fitted(chat.guard.messages(question.messages or ())), (), prompt=True) for question in questions]
    prompts = encode_ids(tokenizer, texts)
    for tokens in greedy(generator_of(model, tokenizer), prompts, max_new_tokens=max_new_tokens):
        yield str(tokenizer.decode(tokens, skip_special_tokens=True))


def check_artifacts(arms: Sequence[Arm]) -> None:
    """Raises ConfigError for every run without a model that could answer."""
    problems: list[Problem] = []
    for run in (run for arm in arms for run in arm.runs):
        try:
            find_artifact(str(last_stage(run)))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
