"""`posttrain eval run=DIR suite=NAME`: evaluate an artifact, print a table, keep the results in RUN/eval."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.sources import find_files, is_hub_id
from posttrain.errors import ConfigError, Problem
from posttrain.evaluation.suites.about import HELD_OUT, START
from posttrain.evaluation.suites.registry import GROUP, Suite, find_suite, parts_of
from posttrain.runs.against import opponent_folder
from posttrain.runs.arguments import bind, find_artifact, parameters_of
from posttrain.runs.eval_tracking import log_to_run
from posttrain.runs.files import prepare_folder, write_atomic
from posttrain.runs.kept_scores import keep_scores
from posttrain.runs.options import config_dir, options
from posttrain.runs.quiet import quiet_libraries
from posttrain.runs.records import encode, versions
from posttrain.runs.signatures import Parameter
from posttrain.runs.start import start_of
from posttrain.runs.suites import own_config, read_as, run_suite
from posttrain.runs.validate import node_problems

if TYPE_CHECKING:
    from posttrain.evaluation.suites.result import SuiteResult

WRITTEN = ("conversation", "text")  # kinds of data that a language model is to write

OWN = {"run": Parameter("run", str, required=True), "device": Parameter("device", str | None, required=False)}


def main(args: Mapping[str, Any]) -> int:
    """Run the command. Raises UserError for wrong arguments and missing files, before the model is loaded."""
    suite, settings = read_arguments(args)
    folder, device = find_artifact(settings.pop("run")), settings.pop("device", None)
    suite = replace(suite, settings=settings)
    home = folder.parent if folder.name == "artifact" else folder
    prepare_folder(home / "eval", key="run")
    quiet_libraries()
    against = {"against": start_of(home)} if settings.get("against") == START else {}
    config = own_config(home) if settings.get("data") == HELD_OUT else None
    result = run_suite(replace(suite, settings={**settings, **against}), folder, config, device=device)
    files = write_results(home, suite, folder, result)
    show(suite.name, result, files[0])
    if record := log_to_run(home, suite.name, result.metrics, files):
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
    suite, given = _with_parts(str(name), {key: value for key, value in args.items() if key != "suite"})
    settings = bind({**suite.settings, **given}, OWN | parameters_of(suite.target), command=f"eval suite={suite.name}")
    nodes = {key: value for key, value in settings.items() if isinstance(value, dict) and "_target_" in value}
    if problems := [problem for key, node in nodes.items() for problem in node_problems(node, key)]:
        raise ConfigError(problems)
    _check_places(replace(suite, settings=settings))
    return suite, settings


def _with_parts(name: str, given: dict[str, Any]) -> tuple[Suite, dict[str, Any]]:
    """The suite with the options chosen for its parts (`backend=openai`), and what else was given, with `backend.url=...` put in."""
    suite = find_suite(name)
    chosen = {key: given.pop(key) for key in parts_of(suite) if isinstance(given.get(key), str)}
    suite = find_suite(name, chosen) if chosen else suite
    for key in [key for key in given if isinstance(suite.settings.get(key.split(".")[0]), dict)]:
        head, _, below = key.partition(".")
        if below:
            given[head] = {**suite.settings[head], **given.get(head, {}), below: given.pop(key)}
    return suite, given


def _check_places(suite: Suite) -> None:
    """Raises UserError where what the settings name is not there."""
    settings = suite.settings
    if settings.get("data") == HELD_OUT or settings.get("against") == START:
        find_artifact(settings["run"])
    if settings.get("data") == HELD_OUT:
        read_as(own_config(Path(settings["run"])), suite)
    if settings.get("against") == START:
        start_of(Path(settings["run"]))
    if isinstance(settings.get("data"), str) and settings["data"] != HELD_OUT and not is_hub_id(settings["data"]):
        find_files(settings["data"])
    if "against" in settings and settings["against"] != START:
        opponent_folder(settings["against"])


def write_results(home: Path, suite: Suite, artifact: Path, result: SuiteResult) -> list[Path]:
    """Write HOME/eval/NAME.json (metrics, settings, versions), NAME.samples.jsonl (one line an example) and NAME.examples.parquet (the
    scores of single examples, if it has any); their paths."""
    rows = "".join(json.dumps(row, default=str, ensure_ascii=False) + "\n" for row in result.rows)
    path = home / "eval" / f"{suite.name}.json"
    write_atomic(samples_of(path), rows)
    report = {
        "suite": suite.name,
        "artifact": str(artifact),
        "metrics": {key: encode(value) for key, value in result.metrics.items()},
        "settings": dict(suite.settings),
        "measured_as": measured_as(suite, result.details),
        "details": dict(result.details),
        "versions": versions(),
    }
    write_atomic(path, json.dumps(report, indent=2, allow_nan=False, default=str) + "\n")
    return [path, samples_of(path), *([keep_scores(home, result.scores, suite.name)] if result.scores else [])]


def measured_as(suite: Suite, details: Mapping[str, Any]) -> dict[str, Any]:
    """All settings that a suite's values were found by, the function's own defaults among them.

    details: of the result, which say of an opponent which model it was.
    """
    defaults = {name: parameter.default for name, parameter in parameters_of(suite.target).items() if not parameter.required}
    known = {"against": details["against"]} if "against" in details else {}
    return {**defaults, **suite.settings, **known}


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
