"""Suites of a run: what stands for the run itself in their settings is put in, and they are run on the artifact at its end."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from posttrain.errors import ConfigError, Problem
from posttrain.evaluation.suites.about import HELD_OUT, START, about
from posttrain.evaluation.suites.registry import Suite, suite_of
from posttrain.runs import entering, targets
from posttrain.runs.data_record import check_held_out
from posttrain.runs.files import write_atomic
from posttrain.runs.kept_scores import FOLDER
from posttrain.runs.source import class_constant
from posttrain.runs.start import starting_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.data.prepare import Prepared
    from posttrain.evaluation.suites.result import SuiteResult

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """metrics: eval/SUITE/NAME, the finite ones. files: what was written."""

    metrics: Mapping[str, float]
    files: tuple[Path, ...]


def suites_of(config: Config) -> list[Suite]:
    """The suites that a run is measured by at its end."""
    nodes = config["evaluation"].get("suite") or {}
    return [suite_of(name, node) for name, node in nodes.items() if isinstance(node, dict) and isinstance(node.get("_target_"), str)]


def own_config(run: Path) -> dict[str, Any]:
    """The config of the run that an artifact lies in; of a pipeline, its last stage's.

    Raises ConfigError where there is none: then the data must be named.
    """
    path = Path(os.path.expanduser(run)) / "config.yaml"
    if not path.is_file():
        raise ConfigError(Problem("data", f"is needed: {run} is not a run's folder, whose held-out examples could be used", "data=FILE"))
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if config.get("stages"):
        from posttrain.runs.pipeline.wanted import stage_folders

        result = json.loads((path.parent / "result.json").read_text(encoding="utf-8"))
        return own_config(stage_folders(path.parent, result["stages"])[-1])
    return entering.applied({**config, "output_dir": str(path.parent)})


def read_as(config: Config, suite: Suite) -> str:
    """The kind of data as which a suite reads what a run holds out. Raises ConfigError where it cannot."""
    reads, method = about(suite.target).reads, config["method"]
    if not reads:
        raise ConfigError(Problem("data", f"is needed: {suite.name} reads files of its own", "data=FILE"))
    if class_constant(str(method.get("_target_")), "language_model") is False:
        message = f"method={method.get('name')} makes no model that writes, so {suite.name} has nothing to measure"
        raise ConfigError(Problem(f"suite={suite.name}", message, "its metrics on what it held out are in result.json"))
    own = str(class_constant(str(method.get("_target_")), "data_kind"))
    return own if own in reads else reads[0]


def held_out(config: Config, suite: Suite, tokenizer: PreTrainedTokenizerBase | None = None) -> Prepared:
    """A run's own data, as the suite reads them. tokenizer: None for the one that the run began with.

    Raises UserError where they cannot be read so, are others by now, or nothing is held out.
    """
    from posttrain.runs.inputs import load_inputs

    _, prepared = load_inputs(config, kind=read_as(config, suite), tokenizer=tokenizer)
    check_held_out(Path(config["output_dir"]), prepared)
    if prepared.val is None:
        raise ConfigError(Problem("data", "is needed: the run held no examples out", "data=FILE"))
    return prepared


def settled(suite: Suite, config: Config | None, tokenizer: PreTrainedTokenizerBase | None = None) -> dict[str, Any]:
    """The suite's settings with what stands for something of the run put in. config: the run's; None where there is no run.
    tokenizer: see `held_out`."""
    settings = dict(suite.settings)
    if settings.get("data") == HELD_OUT:
        assert config is not None
        settings["data"] = held_out(config, suite, tokenizer)
    if settings.get("against") == START:
        assert config is not None
        settings["against"] = starting_model(config)
    return settings


def run_suite(suite: Suite, folder: Path, config: Config | None, *, device: str | None, allow: Collection[str] = ()) -> SuiteResult:
    """Run a suite on the artifact in `folder`. config: of the run it lies in, if it lies in one."""
    from posttrain.runs.loaded import load

    model, tokenizer = load(folder, device=device)
    result: SuiteResult = targets.build({**settled(suite, config, tokenizer), "_target_": suite.target}, model, tokenizer, allow=allow)
    return result


def check_suites(config: Config, allow: Collection[str] = ()) -> None:
    """Before anything is trained: whether the suites of the run's end will find what they read, and what they ask can be asked.

    Raises UserError with what is wrong.
    """
    for suite in suites_of(config):
        nodes = [value for value in settled(suite, config).values() if isinstance(value, dict) and "_target_" in value]
        for node in nodes:
            targets.build(node, allow=allow).check()


def measure_end(
    config: Config, suites: Sequence[Suite], artifact: Path, *, device: str | None, allow: Collection[str] = (), home: Path | None = None
) -> Outcome:
    """Run suites on a run's artifact, and keep what they found in the run's folder (or in `home`), as `posttrain eval` does."""
    from posttrain.runs.evaluate import write_results

    metrics: dict[str, float] = {}
    files: list[Path] = []
    home = home or Path(config["output_dir"])
    (home / FOLDER).mkdir(parents=True, exist_ok=True)
    for suite in suites:
        result = run_suite(suite, artifact, config, device=device, allow=allow)
        files += write_results(home, suite, artifact, result)
        metrics |= {f"eval/{suite.name}/{name}": value for name, value in result.metrics.items() if math.isfinite(value)}
    return Outcome(metrics, tuple(files))


def lacking(config: Config) -> list[Suite]:
    """The suites of a finished run that it was not measured by yet, or not with these settings."""
    return [suite for suite in suites_of(config) if not is_measured(suite, Path(config["output_dir"]))]


def is_measured(suite: Suite, home: Path) -> bool:
    """Whether the results in HOME/eval are of this suite with these settings."""
    try:
        found = json.loads((home / FOLDER / f"{suite.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found.get("settings") == json.loads(json.dumps(dict(suite.settings))))


def found_in(home: Path, name: str) -> dict[str, float]:
    """The finite metrics of a suite in HOME/eval, as eval/SUITE/NAME; nothing where it was not run."""
    try:
        found = json.loads((home / FOLDER / f"{name}.json").read_text(encoding="utf-8"))["metrics"]
    except (OSError, ValueError, KeyError):
        return {}
    return {f"eval/{name}/{metric}": value for metric, value in found.items() if isinstance(value, int | float)}


def measure_later(config: Config, *, allow: Collection[str] = ()) -> None:
    """Measure a finished run by the suites that it lacks, without training anything, and put the metrics into its result.json in place of
    those that the same suites found before."""
    suites, home = lacking(config), Path(config["output_dir"])
    path = home / "result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    if not suites or result["artifact"] is None:
        return
    print(f"measuring its artifact by {', '.join(suite.name for suite in suites)}")
    check_suites(config, allow)
    before = {name for suite in suites for name in found_in(home, suite.name)}
    found = measure_end(entering.applied(dict(config)), suites, home / "artifact", device=None, allow=allow)
    result["metrics"] = {name: value for name, value in result["metrics"].items() if name not in before} | dict(found.metrics)
    write_atomic(path, json.dumps(result, indent=2, allow_nan=False) + "\n")
