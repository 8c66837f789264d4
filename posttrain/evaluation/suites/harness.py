"""Suites of lm-evaluation-harness tasks, run on the model in memory. Needs the extra `eval`.

Tasks come from the harness's own collection (their data from the Hugging Face hub or its cache) or from task files in `include_path`.
"""

from __future__ import annotations

import copy
import json
import logging
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from posttrain.errors import ConfigError, DataError, Problem
from posttrain.evaluation.scores import Scores, names_of
from posttrain.evaluation.suites.result import SuiteResult
from posttrain.models.decoding import decoding_mode
from posttrain.models.hub import hub_reachable
from posttrain.models.policy import causal_lm
from posttrain.runs.suggest import hint

log = logging.getLogger(__name__)

SEED = 1234
ASKED = {"task", "example", "filter", "arguments", "expected", "answers", "extracted"}  # of `sample_rows`; the other keys are scores


def harness(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tasks: list[str],
    num_fewshot: int | None = 0,
    limit: int | None = None,
    batch_size: int = 8,
    max_length: int | None = None,
    apply_chat_template: bool | None = None,
    include_path: str | None = None,
    bootstrap_iters: int = 1000,
) -> SuiteResult:
    """Evaluate on lm-evaluation-harness tasks or groups of them; greedy wherever a task generates.

    Args:
        tasks: names of tasks, groups or tags.
        num_fewshot: solved examples before each question; null = each task's own number. A task that fixes 0 keeps 0.
        limit: first documents of each task.
        batch_size: requests in one forward.
        max_length: most tokens of a request; null = the model's.
        apply_chat_template: null = if the tokenizer has one.
        include_path: a folder with own task files, looked up before the harness's collection.
        bootstrap_iters: resamples behind the standard errors that have no closed form.

    Raises:
        ConfigError: unknown tasks, or a package that a task imports is missing.
        DataError: a task's data can be had neither from the hub nor from the cache.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    templated = tokenizer.chat_template is not None if apply_chat_template is None else apply_chat_template
    with kept_random_state(), _quiet_harness(), decoding_mode(model), task_errors(tasks), _offline_when_unreachable():
        manager = task_manager(tasks, include_path)
        # The harness sets a padding side and token on the tokenizer it is given.
        lm = HFLM(pretrained=_plain(model), tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size, max_length=max_length)
        results = lm_eval.simple_evaluate(
            model=lm, tasks=list(tasks), task_manager=manager, num_fewshot=num_fewshot, limit=limit, batch_size=batch_size,
            apply_chat_template=templated, log_samples=True, bootstrap_iters=bootstrap_iters, random_seed=SEED, numpy_random_seed=SEED,
            torch_random_seed=SEED, fewshot_random_seed=SEED,
        )  # fmt: skip
    metrics, rows = flat_metrics(results["results"]), list(sample_rows(results["samples"]))
    return SuiteResult(metrics, rows, _details(results), example_scores(metrics, rows))


def task_manager(tasks: Sequence[str], include_path: str | None) -> Any:
    """The harness's task index; only `include_path`'s own tasks are indexed if they are all that is asked for, which is much faster.

    Raises ConfigError naming every unknown task.
    """
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        own = TaskManager(include_path=include_path, include_defaults=False)
        if set(tasks) <= set(own.all_tasks):
            return own
    manager = _collection() if include_path is None else TaskManager(include_path=include_path)
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        raise ConfigError(
            [Problem(f"tasks={name}", "the harness has no such task or group", hint(name, manager.all_tasks)) for name in unknown]
        )
    return manager


@cache
def _collection() -> Any:
    """The index of the harness's own tasks: it reads thousands of files, so a process that evaluates often makes it once."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def flat_metrics(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """`{task: {"acc,none": 0.5, "acc_stderr,none": "N/A"}}` as `{"task/acc": 0.5}`; the filter's name is kept where it says something.

    Standard errors that the harness could not compute ("N/A") and its text fields are left out.
    """
    flat: dict[str, float] = {}
    for task, values in results.items():
        for key, value in values.items():
            metric, comma, rule = key.partition(",")
            if comma and isinstance(value, int | float) and not isinstance(value, bool):
                flat[safe_name("/".join([task, metric, *([] if rule == "none" else [rule])]))] = float(value)
    return flat


def safe_name(name: str) -> str:
    """`name` with every character that MLflow refuses in a metric replaced by an underscore."""
    return re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII)


def sample_rows(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """One row a document and filter: the task, what was asked, what was answered, what was expected, and its scores."""
    for task, documents in samples.items():
        for sample in documents:
            scores = {name: _jsonable(sample[name]) for name in sample["metrics"]}
            yield {
                "task": task,
                "example": sample["doc_id"],
                "filter": sample["filter"],
                "arguments": _jsonable(sample["arguments"]),
                "expected": _jsonable(sample["target"]),
                "answers": _jsonable(sample["resps"]),
                "extracted": _jsonable(sample["filtered_resps"]),
                **scores,
            }


def example_scores(metrics: Mapping[str, float], rows: Sequence[Mapping[str, Any]]) -> dict[str, Scores]:
    """The single examples of each metric that is their mean; the harness has others (perplexity, corpus scores). rows: of `sample_rows`."""
    found: dict[str, tuple[list[str], list[float]]] = {}
    for row in rows:
        asked = json.dumps([row["task"], row["example"], row["arguments"], row["expected"]], sort_keys=True)
        for key, value in row.items():
            if key not in ASKED and isinstance(value, int | float):
                rule = [] if row["filter"] == "none" else [row["filter"]]
                names, values = found.setdefault(safe_name("/".join([row["task"], key, *rule])), ([], []))
                names.append(asked)
                values.append(float(value))
    made = {metric: Scores(names_of(names), np.array(values)) for metric, (names, values) in found.items()}
    return {metric: scores for metric, scores in made.items() if metric in metrics and np.isclose(scores.mean, metrics[metric], rtol=1e-9)}


@contextmanager
def kept_random_state() -> Iterator[None]:
    """The harness seeds Python, NumPy and torch; put all three back as they were."""
    python, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield
    random.setstate(python)
    np.random.set_state(numpy_state)


@contextmanager
def task_errors(tasks: Sequence[str]) -> Iterator[None]:
    """Turn what loading a task raises where its data or a package is missing into an error that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except ModuleNotFoundError as error:
        message = f"a task of {', '.join(tasks)} needs the package {error.name}"
        raise ConfigError(Problem("suite", message, f"pip install 'posttrain[eval]' {error.name}")) from error
    except (ConnectionError, LocalEntryNotFoundError, HfHubHTTPError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        advice = "connect once to fill the cache, or use suite=exact_match data=FILE, or your own task files with include_path=DIR"
        raise DataError(Problem("suite", f"the data of {', '.join(tasks)} cannot be had: {first}", advice)) from error


@contextmanager
def _offline_when_unreachable() -> Iterator[None]:
    """Without a network, read the cache at once rather than after minutes of retries."""
    import datasets.config
    import huggingface_hub.constants

    flags = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if not hub_reachable():
        log.warning("The hub cannot be reached: only data in the local cache can be used.")
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = flags


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """The harness warns about settings that are meant here."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _plain(model: nn.Module) -> nn.Module:
    """The transformers model: LoRA-like adapters live inside its layers and stay active."""
    return causal_lm(model)


def _details(results: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("versions", "n-shot", "n-samples", "higher_is_better")
    return {key: _jsonable(results[key]) for key in kept if key in results}


def _jsonable(value: Any) -> Any:
    """Plain JSON types; anything else as its text."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, str | int | float | bool | None) else str(value)
