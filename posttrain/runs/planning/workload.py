"""What a run computes on: the largest micro-batch of a device, the work of a step, and how many steps there are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from posttrain.data.plan import first_fit
from posttrain.functional.attended import attended
from posttrain.runs.budget.amount import budget_of, is_known_before
from posttrain.runs.planning.sampling import Sampling
from posttrain.runs.planning.shapes import Row

if TYPE_CHECKING:
    from posttrain.data.prepare import Prepared
    from posttrain.data.tokenized import TokenizedSet
    from posttrain.runs.ranks import Ranks

Config = Mapping[str, Any]
LOOKED_AT = 32  # optimizer steps whose micro-batches are looked at
BRANCHES = {"preference": 2}  # answers to one prompt in a tree, by the kind of data


@dataclass(frozen=True)
class Workload:
    """row: the largest micro-batch, of a device or of those that its row is cut over. micro_batches: a step and device. tokens, targets,
    pairs: trained on in a step over all devices, pairs of (query, key). steps: whole ones, a last one that is cut short counts by what it
    sees; None where only the data could say. exact: whether the data
    were looked at. sampling: a device's share of a rollout; sampled: answers of a step's share of rollouts; words: rows for the reader."""

    row: Row
    micro_batches: int
    tokens: float
    targets: float
    pairs: float
    steps: float | None
    exact: bool
    sampling: Sampling | None
    words: tuple[tuple[str, str], ...]


def ranks_of(config: Config) -> Ranks:
    """The first of the run's ranks, as its step plan sees it."""
    from posttrain.runs.ranks import Ranks, placed

    return placed(Ranks(world=devices_of(config)), config["hardware"])


def of_data(config: Config, prepared: Prepared, *, before: float = 0.0) -> Workload:
    """From the tokenised data. before: what of the budget is spent before the run begins."""
    return _online(config, prepared) if config["rollout"] is not None else _offline(config, prepared, before)


def _offline(config: Config, prepared: Prepared, before: float) -> Workload:
    from posttrain.data.plan import StepPlan
    from posttrain.runs.budget.plan import bought
    from posttrain.runs.train import plan_of, untrained

    ranks = ranks_of(config)
    known = is_known_before(config)
    plan = bought(config, prepared, ranks, untrained(config), before=before) if known else plan_of(config, prepared, ranks)
    assert isinstance(plan, StepPlan)
    train, lengths = prepared.train, prepared.train.lengths
    steps = [plan.step(number) for number in range(min(plan.steps, LOOKED_AT))]
    micro = [batch for step in steps for rank in step.split for batch in rank]
    row = row_of(train, max(micro, key=lambda places: int(lengths[list(places)].sum())))
    examples = [place for step in steps for rank in step.split for batch in rank for place in batch][:256]
    pairs = float(np.mean([_pairs(row_of(train, [place])) for place in examples]))
    batch, mean = config["global_batch"], float(lengths.mean())
    words = (
        ("examples", f"{len(lengths):,}"),
        ("tokens an example", f"{mean:,.1f} on average, {lengths.max():,} at most"),
        ("examples a step", f"{batch:,}"),
        ("tokens a step", f"{mean * batch:,.0f} on average"),
        ("micro-batches", f"{plan.micro_batches} a step and device, the largest of {row.tokens:,} tokens"),
        ("steps", f"{plan.steps:,}"),
        ("tokens in all", f"{plan.tokens:,.0f}"),
    )
    targets = float(train.targets.mean()) * batch
    return Workload(row, plan.micro_batches, mean * batch, targets, pairs * batch, plan.total / batch, True, None, words)


def _online(config: Config, prepared: Prepared) -> Workload:
    from posttrain.rollout.plan import ExperiencePlan
    from posttrain.runs.train import plan_of

    plan = plan_of(config, prepared, ranks_of(config))
    assert isinstance(plan, ExperiencePlan)
    steps = plan.steps if budget_of(config) is None or config["max_steps"] is not None else None
    lengths = prepared.train.lengths
    words = (("prompts", f"{len(lengths):,}"), ("tokens a prompt", f"{lengths.mean():,.1f} on average, {lengths.max():,} at most"))
    return sampled(config, prompt=float(lengths.mean()), longest=int(lengths.max()), steps=steps, exact=True, words=words)


def sampled(
    config: Config, *, prompt: float, longest: int, steps: int | None, exact: bool, words: tuple[tuple[str, str], ...] = ()
) -> Workload:
    """Of a method that samples its own answers: all at their full length, which none can exceed."""
    rollout, method, devices = config["rollout"], config["method"], devices_of(config)
    answer, group, batch = rollout["max_new_tokens"], rollout["group_size"], config["global_batch"]
    tree = round(prompt) + group * answer
    row, micro = _trees(round(prompt), answer, group, groups=batch, devices=devices, max_tokens=config["max_tokens"])
    prompts = math.ceil(batch * method["minibatches"] / devices)
    most = batch * tree
    words = (
        *words,
        ("answers a step", f"{batch * group:,}, {group} to each of {batch} prompts, of at most {answer:,} tokens"),
        ("a rollout", f"{batch * method['minibatches']:,} prompts, for {method['minibatches'] * method['rollout_epochs']} optimizer steps"),
        ("tokens a step", f"at most {most:,.0f}"),
        ("steps", _steps_text(config, steps)),
    )
    one = _pairs(Row(((round(prompt), 0), *(((answer, round(prompt)),) * group)), 0))
    # the room for keys and values is a number of tokens in the native decoder and in transformers' batches, and another program's in vLLM
    sampling = Sampling(prompts, group, longest, answer, rollout.get("cache_tokens", rollout.get("batch_tokens")))
    return Workload(row, micro, most, batch * group * answer, batch * one, steps, exact, sampling, words)


def _trees(prompt: int, answer: int, group: int, *, groups: int, devices: int, max_tokens: int) -> tuple[Row, int]:
    """The largest micro-batch of a device and how many there are, cut as `posttrain.rollout.plan` does: each group in as few trees as
    fit, and these in as few and as equal micro-batches as fit."""
    pieces = math.ceil(group * answer / max(max_tokens - prompt, answer))
    answers = math.ceil(group / pieces)
    trees = np.full(groups * pieces, prompt + answers * answer, np.int64)
    micro = max(1, math.ceil(first_fit(np.minimum(trees, max_tokens), max_tokens) / devices))
    here = math.ceil(len(trees) / (micro * devices))
    return Row(((prompt, 0), *((answer, prompt),) * answers) * here, here * answers * answer), micro


def bound(config: Config, kind: str, why: str) -> Workload:
    """An upper bound from the configuration alone, where the data are not here."""
    longest = min(config["max_length"], config["max_tokens"])
    if config["rollout"] is not None:
        room = max(1, min(longest, config["max_tokens"] - config["rollout"]["max_new_tokens"]))
        return sampled(
            config,
            prompt=room,
            longest=room,
            steps=config["max_steps"],
            exact=False,
            words=(("prompts", f"unknown ({why}); reckoned with {longest:,} tokens, the most"),),
        )
    branches = BRANCHES.get(kind, 1)
    one = ((longest, 0),) if branches == 1 else ((longest - 2 * (longest // 3), 0), *(((longest // 3, longest // 3),) * branches))
    batch, devices = config["global_batch"], ranks_of(config).readers
    here = min(math.ceil(batch / devices), max(1, config["max_tokens"] // longest))
    row = Row(one * here, longest * here)
    words = (
        ("examples a step", f"{batch:,}"),
        ("tokens a step", f"at most {batch * config['max_length']:,} ({why})"),
        ("steps", _steps_text(config, config["max_steps"])),
    )
    micro = math.ceil(batch / devices / here)
    pairs = batch * _pairs(Row(one, 0))
    return Workload(row, micro, batch * longest, batch * longest, pairs, config["max_steps"], False, None, words)


def _steps_text(config: Config, steps: int | None) -> str:
    budget = budget_of(config)
    if steps is None and budget is not None:
        return f"as many as {budget.words} buy"
    return f"{steps:,}" if steps is not None else f"{config['epochs']:g} epochs; how many steps depends on the data"


def devices_of(config: Config) -> int:
    """Over all nodes."""
    return int(config["hardware"]["nodes"] * config["hardware"]["devices"])


def row_of(train: TokenizedSet, places: Sequence[int]) -> Row:
    """The micro-batch of some examples."""
    segments: list[tuple[int, int]] = []
    targets = 0
    for place in places:
        example = train[int(place)]
        before: list[int] = []
        for length, parent in zip(example.segment_lengths.tolist(), example.segment_parents.tolist(), strict=True):
            above = 0 if parent < 0 else before[parent] + segments[len(segments) - len(before) + parent][0]
            before.append(above)
            segments.append((length, above))
        targets += int(np.count_nonzero(example.weights))
    return Row(tuple(segments), targets)


def _pairs(row: Row) -> float:
    """(query, key) products of attention."""
    return float(sum(attended(length, before) for length, before in row.segments))
