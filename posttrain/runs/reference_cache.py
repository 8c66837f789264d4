"""Log-probabilities of the reference policy, computed once and kept: `method.reference=cached`.

The cache is keyed by the model, its precision, the tokenised data (which holds the tokenizer and its template) and the settings; nothing
else can be found under that key. A folder that the user names says in `reference.json` what it was made with, and is refused otherwise.
Blocks of examples are entries of their own: the ranks share them out through file locks, without a collective that could time out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posttrain.data.cache import cache_root, fetch
from posttrain.data.held_out import spread
from posttrain.data.loader import micro_batch
from posttrain.data.plan import StepPlan, balance, first_fit
from posttrain.data.prepare import tokenizer_digest
from posttrain.data.reference_logps import BLOCK, FILE, ReferenceLogps, trained_places, write
from posttrain.data.tokenized import Part, TokenizedSet
from posttrain.data.tree import to_device
from posttrain.data.work import attended_by
from posttrain.errors import ConfigError, Problem
from posttrain.models.build import build_policy
from posttrain.models.flops import flop_model
from posttrain.models.hub import commit_of, is_local
from posttrain.models.integrity import checksums, config_hash, weight_files
from posttrain.models.reference import FrozenCopy
from posttrain.runs.files import write_atomic
from posttrain.runs.records import versions
from posttrain.runs.train import Job
from posttrain.types import StepShare, TokenizedExample

log = logging.getLogger(__name__)

ABOUT = "reference.json"
Model = Callable[[], FrozenCopy]


def with_cached_reference(job: Job) -> Job:
    """The job with the reference's log-probabilities in its examples, computed where they are not there yet. Raises ConfigError."""
    about = made_with(job)
    root = _root(job, about)
    model = cache(lambda: _reference(job))
    needed = {id(part): np.concatenate(rows) for part, rows in _needed(job).items()}
    found = {id(part): _blocks(job, part, np.unique(needed[id(part)] // BLOCK), root, model) for part in _needed(job)}

    def known(examples: TokenizedSet) -> TokenizedSet:
        blocks = (found[id(part)][0] if id(part) in found else ReferenceLogps({}) for part in examples.parts)
        return replace(examples, reference=tuple(blocks))

    prepared = job.prepared
    prepared = replace(prepared, train=known(prepared.train), val=None if prepared.val is None else known(prepared.val))
    return replace(job, prepared=prepared, flops=job.flops + sum(flops for _, flops in found.values()))


def made_with(job: Job) -> dict[str, str]:
    """What decides the log-probabilities, by the words an error would use."""
    model = job.config["model"]
    weights = identity(str(model["path"]), model["revision"]) if model["weights"] == "pretrained" else {"seed": job.config["seed"]}
    return {
        "model": config_hash({"model": model, "weights": weights}),
        "precision": job.config["precision"],
        "tokenizer": tokenizer_digest(job.tokenizer),
        "device": job.device.type,
        "software": config_hash(dict(versions())),
    }


def identity(path: str, revision: str | None) -> dict[str, Any]:
    """What tells one pretrained model from another: of a folder its files and those of an adapter's base, of a hub id its commit."""
    if not is_local(path):
        return {path: commit_of(path, revision)}
    folder = Path(path).expanduser()
    known: dict[str, Any] = {
        folder.name: checksums(folder, [*weight_files(folder), *sorted(folder.glob("*.bin")), *sorted(folder.glob("*.json"))])
    }
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        about = json.loads(adapter.read_text(encoding="utf-8"))
        known["base"] = identity(str(about["base_model_name_or_path"]), about.get("revision"))
    return known


def _root(job: Job, about: Mapping[str, str]) -> Path:
    """The folder of this reference; one that the user names must have been made with the same."""
    named = job.config["method"].get("reference_cache")
    if named is None:
        root = cache_root(job.config["data"].get("cache_dir")).parent / "reference" / config_hash(about)[:32]
    else:
        root = Path(named).expanduser().absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
        there = json.loads((root / ABOUT).read_text(encoding="utf-8")) if (root / ABOUT).is_file() else None
        if there is None:
            write_atomic(root / ABOUT, json.dumps(about, indent=2) + "\n")
    except (OSError, ValueError) as error:
        raise ConfigError(Problem("method.reference_cache", f"{root}: {error}", "choose another folder")) from error
    if there is not None and there != about:
        differs = ", ".join(name for name in about if there.get(name) != about[name]) or "format"
        message = f"{root} is stale: it was made with another {differs}"
        raise ConfigError(Problem("method.reference_cache", message, "choose another folder, or leave it null"))
    return root


def _needed(job: Job) -> dict[Part, list[np.ndarray]]:
    """Rows of each source that the run will read."""
    train, val = job.prepared.train, job.prepared.val
    assert isinstance(job.plan, StepPlan)  # what is sampled cannot be known before
    steps = range(job.plan.steps)
    seen = np.unique(np.concatenate([job.plan.examples(step) for step in steps]))
    limit = job.config["validate"]["max_examples"]
    first = np.zeros(1, seen.dtype)  # what a rank without work in a step computes on
    wanted: list[tuple[TokenizedSet, np.ndarray]] = [(train, np.union1d(first, seen))]
    if val is not None:
        wanted.append((val, np.union1d(first, spread(range(len(val)), limit))))
    rows: dict[Part, list[np.ndarray]] = {}
    for examples, indices in wanted:
        for number, part in enumerate(examples.parts):
            mine = indices[examples.part_of[indices] == number]
            if len(mine):
                rows.setdefault(part, []).append(examples.index_of[mine])
    return rows


def _blocks(job: Job, part: Part, blocks: np.ndarray, root: Path, model: Model) -> tuple[ReferenceLogps, float]:
    """The blocks of a source, and the operations that computing them takes.

    It begins with its own share, then takes or waits for the others'.
    """
    order = dict.fromkeys(map(int, [*blocks[job.ranks.rank :: job.ranks.world], *blocks]))
    folders: dict[int, Path] = {}
    flops = 0.0
    for block in order:
        build = partial(_compute, job, part, block, model=model)
        folders[block], about, _ = fetch(root, f"{part.path.parent.name}-{block}", build)
        flops += about["flops"]  # also where an earlier run computed it: each that uses it is charged
    return ReferenceLogps(folders), flops


def _compute(job: Job, part: Part, block: int, work: Path, *, model: Model) -> dict[str, Any]:
    rows = range(block * BLOCK, min((block + 1) * BLOCK, len(part)))
    log.info("reference: log-probabilities of examples %d to %d of %d (kept for later runs)", rows.start + 1, rows.stop, len(part))
    examples = [part.example(row) for row in rows]
    logps: list[np.ndarray] = [np.zeros(0, np.float32)] * len(examples)
    for group in _groups(examples, job.config["max_tokens"]):
        values = iter(np.split(*_logps(job, model(), [examples[place] for place in group])))
        for place, value in zip(group, values, strict=False):
            logps[place] = value
    write(work / FILE, logps)
    return {"examples": len(examples), "flops": _operations(model(), examples)}


def _operations(reference: FrozenCopy, examples: Sequence[TokenizedExample]) -> float:
    """Of a forward pass over some examples."""
    tokens = sum(len(example.ids) for example in examples)
    targets = sum(len(trained_places(example)) for example in examples)
    return flop_model(reference.policy).forward(tokens=tokens, targets=targets, pairs=sum(map(attended_by, examples)))


def _groups(examples: Sequence[TokenizedExample], max_tokens: int) -> Iterator[list[int]]:
    lengths = np.array([len(example.ids) for example in examples])
    most = max(max_tokens, int(lengths.max()))
    return iter(balance(lengths, first_fit(lengths, most), most))


def _logps(job: Job, reference: FrozenCopy, examples: list[TokenizedExample]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of all targets of some examples, and where each example's end."""
    tree = to_device(micro_batch(_List(examples), range(len(examples)), StepShare(1.0, len(examples), 1)), job.device)
    with torch.autocast(job.device.type, torch.bfloat16, enabled=job.config["precision"] == "bf16"):
        logps = reference(tree)
    ends = np.cumsum([len(trained_places(example)) for example in examples])[:-1]
    return logps.float().cpu().numpy(), ends


class _List:
    """Examples in a list."""

    def __init__(self, examples: list[TokenizedExample]) -> None:
        self.examples = examples

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(example.ids) for example in self.examples])

    @property
    def targets(self) -> np.ndarray:
        return np.array([example.weights.sum() for example in self.examples])

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> TokenizedExample:
        return self.examples[index]


def _reference(job: Job) -> FrozenCopy:
    """The model that enters this stage, on this rank's device."""
    config = job.config
    policy = build_policy(config["model"], job.tokenizer, precision=config["precision"], seed=config["seed"], device=job.device)
    return FrozenCopy(policy).to(job.device)
