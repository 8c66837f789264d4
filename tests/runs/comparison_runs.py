"""Run folders as finished runs leave them, with scores that are made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from posttrain.evaluation.scores import Scores, names_of
from posttrain.runs.kept_scores import keep_scores
from posttrain.runs.records import MetricsFile, Result, write_result

METRIC = "eval/exact_match"
HARDWARE = {"name": "2xcpu", "nodes": 1, "devices": 2}


def make_run(
    folder: Path,
    *,
    seed: int,
    scores: np.ndarray | None = None,
    metrics: dict[str, float] | None = None,
    config: dict[str, Any] | None = None,
    status: Any = "finished",
    prompts: str = "question",
    flops: float = 4e12,
) -> Path:
    """A run whose `METRIC` is the mean of `scores`, kept by example."""
    folder.mkdir(parents=True)
    chosen = {"method": {"name": "sft"}, "model": {"name": "nano"}, "optimizer": {"lr": 0.001}, "hardware": HARDWARE, **(config or {})}
    (folder / "config.yaml").write_text(yaml.safe_dump({**chosen, "seed": seed, "output_dir": str(folder), "tracking": {"name": "none"}}))
    final = dict(metrics or {})
    if scores is not None:
        names = names_of(f"{prompts} {number}" for number in range(len(scores)))
        keep_scores(folder, {METRIC: Scores(names, scores)})
        final[METRIC] = float(scores.mean())
    write_result(
        folder / "result.json",
        Result(
            status=status,
            method=chosen["method"]["name"],
            steps=2,
            examples=8,
            tokens=400,
            flops=flops,
            train_seconds=36.0,
            tokens_per_second=11.1,
            peak_memory_bytes=2**30,
            metrics=final,
        ),
    )
    lines, times = MetricsFile(folder / "metrics.jsonl"), MetricsFile(folder / "throughput.jsonl", timed=True)
    lines.append(0, {METRIC: 0.1})
    for step in (1, 2):
        lines.append(step, {"loss": 1.0, "tokens": 200 * step})
        times.append(step, {"seconds": 18.0})
    lines.append(1, {METRIC: 0.2})
    lines.close()
    times.close()
    return folder


def make_arm(
    home: Path, name: str, *, gain: float, seeds: int = 3, examples: int = 200, spread: float = 0.01, **options: Any
) -> list[Path]:
    """An arm of several seeds; all arms answer the same examples, which are as hard for each."""
    hard = np.random.default_rng(0).normal(0.5, 0.3, examples)
    draws = np.random.default_rng(list(name.encode()))
    config = {"method": {"name": name}, **options.pop("config", {})}
    made = []
    for seed in range(1, seeds + 1):
        scores = gain + hard + spread * draws.standard_normal() + 0.1 * draws.standard_normal(examples)
        made.append(make_run(home / f"{name}-{seed}", seed=seed, scores=scores, config=config, **options))
    return made


def rewrite(folder: Path, file: str, **changes: Any) -> None:
    """Change fields of a JSON file of a run."""
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def make_study(home: Path, arms: dict[str, list[Path]], **changes: Any) -> Path:
    """study.json for runs that lie in `home`."""
    record = {
        "name": "recipes", "metric": METRIC, "better": "auto", "smallest": 0.02, "budget": {"unit": "flops", "amount": 4e12},
        "arms": [{"name": name, "runs": [str(folder.relative_to(home)) for folder in some]} for name, some in arms.items()],
        "parent": None,
    }  # fmt: skip
    (home / "study.json").write_text(json.dumps({**record, **changes}))
    return home


def make_pipeline(folder: Path, stages: dict[str, Path], *, seed: int, reused: tuple[str, ...] = ()) -> Path:
    """A pipeline's folder over runs that are there; `folder` holds a link to each."""
    folder.mkdir(parents=True)
    results = {name: json.loads((stage / "result.json").read_text()) for name, stage in stages.items()}
    configs = {name: yaml.safe_load((stage / "config.yaml").read_text()) for name, stage in stages.items()}
    entries = []
    for number, (name, stage) in enumerate(stages.items(), 1):
        link = folder / f"{number}_{name}"
        link.symlink_to(stage, target_is_directory=True)
        costs = {key: results[name][key] for key in ("flops", "tokens", "train_seconds", "status")}
        entries.append({"name": name, "folder": link.name, "hash": name, "reused": name in reused, **costs})
    last = list(stages)[-1]
    sums = {key: sum(result[key] for result in results.values()) for key in ("steps", "examples", "tokens", "flops", "train_seconds")}
    config = {**configs[last], "method": {"name": "staged"}, "seed": seed, "output_dir": str(folder)}
    inputs = [{}, *({"policy": name} for name in stages)]
    parts = [{"name": name, "inputs": found, "share": None, "config": configs[name]} for name, found in zip(stages, inputs, strict=False)]
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "stages": parts}))
    (folder / "result.json").write_text(json.dumps({**results[last], **sums, "method": "staged", "stages": entries}))
    return folder
