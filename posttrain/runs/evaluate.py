"""`posttrain eval run=DIR suite=NAME`: evaluate an artifact, print a table, keep the results in RUN/eval."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from posttrain.data.sources import find_files, is_hub_id
from posttrain.errors import ConfigError, Problem
from posttrain.evaluation.suites.registry import GROUP, Suite, find_suite
from posttrain.runs.arguments import bind, find_artifact, parameters_of
from posttrain.runs.eval_tracking import log_to_run
from posttrain.runs.files import prepare_folder, write_atomic
from posttrain.runs.kept_scores import keep_scores
from posttrain.runs.options import config_dir, options
from posttrain.runs.quiet import quiet_libraries
from posttrain.runs.records import encode, versions
from posttrain.runs.signatures import Parameter
from posttrain.runs.source import class_constant

if TYPE_CHECKING:
    from posttrain.data.prepare import Prepared
    from posttrain.evaluation.suites.result import SuiteResult

WRITTEN = ("conversation", "text")  # kinds of data that a language model is to write
HELD_OUT = "held-out"  # data: the examples that the run itself held out

OWN = {"run": Parameter("run", str, required=True), "device": Parameter("device", str | None, required=False)}


def main(args: Mapping[str, Any]) -> int:
    """Run the command. Raises UserError for wrong arguments and missing files, before the model is loaded."""
    suite, settings = read_arguments(args)
    folder, device = find_artifact(settings.pop("run")), settings.pop("device", None)
    home = folder.parent if folder.name == "artifact" else folder
    prepare_folder(home / "eval", key="run")
    result = evaluate(folder, suite, settings, device=device)
    path = write_results(home / "eval", suite.name, settings, folder, result)
    show(suite.name, result, path)
    kept = [keep_scores(home, result.scores, suite.name)] if result.scores else []
    if record := log_to_run(home, suite.name, result.metrics, [path, samples_of(path), *kept]):
        print(f"MLflow: {record}")
    return 0


def read_arguments(args: Mapping[str, Any]) -> tuple[Suite, dict[str, Any]]:
    """The suite, and its settings with `run` and `device`: the suite's own, overruled by the command line.

    `data` without a suite means exact match on that file. Raises UserError with every problem found.
    """
    name = args.get("suite", "exact_match" if "data" in args else None)
    if name is None:
        names = ", ".join(option.name for option in options((config_dir(),), GROUP))
        raise ConfigError(Problem("suite", "is needed", f"one of {names}; or data=FILE for exact match on a local file"))
    suite = find_suite(str(name))
    given = {key: value for key, value in args.items() if key != "suite"}
    if "data" in parameters_of(suite.target) and "data" not in {**suite.settings, **given} and "run" in given:
        given["data"] = HELD_OUT
    settings = bind({**suite.settings, **given}, OWN | parameters_of(suite.target), command=f"eval suite={suite.name}")
    if settings.get("data") == HELD_OUT:
        find_artifact(settings["run"])
        _check_written(own_config(Path(settings["run"])))
    elif isinstance(settings.get("data"), str) and not is_hub_id(settings["data"]):
        find_files(settings["data"])
    return suite, settings


def evaluate(folder: Path, suite: Suite, settings: Mapping[str, Any], *, device: str | None = None) -> SuiteResult:
    """Load the artifact in `folder` and run one suite on it."""
    quiet_libraries()
    from posttrain.runs.loaded import load

    module, _, name = suite.target.rpartition(".")
    run_suite = getattr(import_module(module), name)
    model, tokenizer = load(folder, device=device)
    if settings.get("data") == HELD_OUT:
        settings = {**settings, "data": _held_out(folder)}
    result: SuiteResult = run_suite(model, tokenizer, **settings)
    return result


def own_config(run: Path) -> dict[str, Any]:
    """The config of the run that an artifact lies in. Raises ConfigError where there is none: then the data must be named."""
    path = Path(os.path.expanduser(run)) / "config.yaml"
    if not path.is_file():
        raise ConfigError(Problem("data", f"is needed: {run} is not a run's folder, whose held-out examples could be used", "data=FILE"))
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return config


def _check_written(config: Mapping[str, Any]) -> None:
    """Raises ConfigError where a run held out something else than what a language model is to write."""
    kind = class_constant(config["method"]["_target_"], "data_kind")
    if kind not in WRITTEN:
        message = f"is needed: the run held out data of kind {kind}; its metrics on them are in result.json"
        raise ConfigError(Problem("data", message, "data=FILE with conversations, texts or questions"))


def _held_out(artifact: Path) -> Prepared:
    """The run's own data, as it was prepared for training."""
    from posttrain.runs.inputs import load_inputs

    _, prepared = load_inputs(own_config(artifact.parent if artifact.name == "artifact" else artifact))
    if prepared.val is None:
        raise ConfigError(Problem("data", "is needed: the run held no examples out", "data=FILE"))
    return prepared


def write_results(folder: Path, name: str, settings: Mapping[str, Any], artifact: Path, result: SuiteResult) -> Path:
    """Write FOLDER/NAME.json (metrics, settings, versions) and FOLDER/NAME.samples.jsonl (one line an example); the former's path."""
    rows = "".join(json.dumps(row, default=str, ensure_ascii=False) + "\n" for row in result.rows)
    path = folder / f"{name}.json"
    write_atomic(samples_of(path), rows)
    report = {
        "suite": name,
        "artifact": str(artifact),
        "metrics": {key: encode(value) for key, value in result.metrics.items()},
        "settings": dict(settings),
        "details": dict(result.details),
        "versions": versions(),
    }
    write_atomic(path, json.dumps(report, indent=2, allow_nan=False, default=str) + "\n")
    return path


def samples_of(results: Path) -> Path:
    """Where the examples of a result file lie."""
    return results.with_suffix(".samples.jsonl")


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
    console.print(f"results: {path}\nexamples: {samples_of(path)}", soft_wrap=True)


def stderr_of(metric: str) -> str:
    """`task/acc` -> `task/acc_stderr`; `task/exact_match/strict-match` -> `task/exact_match_stderr/strict-match`."""
    parts = metric.split("/")
    place = 1 if len(parts) > 1 else 0
    return "/".join([*parts[:place], f"{parts[place]}_stderr", *parts[place + 1 :]])
