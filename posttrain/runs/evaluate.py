"""`posttrain eval run=DIR suite=NAME`: evaluate an artifact, print a table, keep the results in RUN/eval."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import ConfigError, Problem
from posttrain.evaluation.suites.registry import GROUP, Suite, find_suite
from posttrain.runs.arguments import bind, find_artifact, parameters_of
from posttrain.runs.files import prepare_folder, write_atomic
from posttrain.runs.options import config_dir, options
from posttrain.runs.records import encode, versions
from posttrain.runs.signatures import Parameter

if TYPE_CHECKING:
    from posttrain.evaluation.suites.result import SuiteResult

log = logging.getLogger(__name__)

OWN = {"run": Parameter("run", str, required=True), "suite": Parameter("suite", str, required=True), "device": Parameter("device", str, required=False)}


def main(args: Mapping[str, Any]) -> int:
    """Run the command. Raises UserError for wrong arguments, before the model is loaded."""
    given = dict(args)
    if "data" in given and "suite" not in given:
        given["suite"] = "exact_match"
    if "suite" not in given:
        names = ", ".join(option.name for option in options((config_dir(),), GROUP))
        raise ConfigError(Problem("suite", "is needed", f"one of {names}; or data=FILE for exact match on a local file"))
    suite = find_suite(str(given["suite"]))
    known = OWN | parameters_of(suite.target)
    bound = bind({**suite.settings, **given}, known, command=f"eval suite={suite.name}")
    folder = find_artifact(bound.pop("run"))
    device = bound.pop("device", None)
    home = folder.parent if folder.name == "artifact" else folder
    prepare_folder(home / "eval", key="run")
    bound.pop("suite")
    result = evaluate(folder, suite, bound, device=device)
    path = write_results(home / "eval", suite.name, bound, folder, result)
    show(suite.name, result, path)
    from posttrain.runs.eval_tracking import log_to_run

    log_to_run(home, suite.name, result.metrics, [path, path.with_suffix(".samples.jsonl")])
    return 0


def evaluate(folder: Path, suite: Suite, settings: Mapping[str, Any], *, device: str | None = None) -> SuiteResult:
    """Load the artifact in `folder` and run one suite on it."""
    from posttrain.runs.loaded import load

    module, _, name = suite.target.rpartition(".")
    run_suite = getattr(import_module(module), name)
    model, tokenizer = load(folder, device=device)
    result: SuiteResult = run_suite(model, tokenizer, **settings)
    return result


def write_results(folder: Path, name: str, settings: Mapping[str, Any], artifact: Path, result: SuiteResult) -> Path:
    """Write FOLDER/NAME.json (metrics, settings, versions) and FOLDER/NAME.samples.jsonl (one line an example); the former's path."""
    rows = "".join(json.dumps(row, default=str, ensure_ascii=False) + "\n" for row in result.rows)
    write_atomic(folder / f"{name}.samples.jsonl", rows)
    report = {
        "suite": name,
        "artifact": str(artifact),
        "metrics": {key: encode(value) for key, value in result.metrics.items()},
        "settings": dict(settings),
        "details": dict(result.details),
        "versions": versions(),
    }
    path = folder / f"{name}.json"
    write_atomic(path, json.dumps(report, indent=2, allow_nan=False, default=str) + "\n")
    return path


def show(name: str, result: SuiteResult, path: Path) -> None:
    """Print the metrics as a table, and where the results are."""
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "value", title=f"{name}: {len(result.rows)} examples")
    for key, value in result.metrics.items():
        if "stderr" not in key:
            error = result.metrics.get(stderr_of(key))
            table.add_row(key, f"{value:.4g}" + ("" if error is None or math.isnan(error) else f" +- {error:.2g}"))
    console = Console()
    console.print(table)
    console.print(f"results: {path}\nexamples: {path.with_suffix('.samples.jsonl')}", soft_wrap=True)


def stderr_of(metric: str) -> str:
    """`task/acc` -> `task/acc_stderr`; `task/exact_match/strict-match` -> `task/exact_match_stderr/strict-match`."""
    parts = metric.split("/")
    place = 1 if len(parts) > 1 else 0
    return "/".join([*parts[:place], f"{parts[place]}_stderr", *parts[place + 1 :]])
