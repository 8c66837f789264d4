"""What suites found of a stage. Pipelines that share it may ask otherwise, so results are kept by what was asked: those of the stage's own
run in its folder, all others beside them, and none of them is changed by a pipeline that comes later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from posttrain.evaluation.suites.registry import Suite
from posttrain.runs import entering
from posttrain.runs.files import write_atomic
from posttrain.runs.kept_scores import FOLDER
from posttrain.runs.suites import check_suites, found_in, is_measured, measure_end, suites_of

BESIDE = "measured"  # in a stage's folder: results that other settings found


def home_of(suite: Suite, stage: Path) -> Path:
    """The folder in whose eval/ the results of the suite with these settings lie, or are to lie."""
    if is_measured(suite, stage):
        return stage
    asked = json.dumps([suite.name, suite.target, dict(suite.settings)], sort_keys=True, default=str)
    return stage / BESIDE / hashlib.sha256(asked.encode()).hexdigest()[:12]


def lacking(config: Mapping[str, Any]) -> list[Suite]:
    """The suites of a finished stage that nobody has measured it by yet with these settings. config: the stage's, in its folder."""
    stage = Path(config["output_dir"])
    return [suite for suite in suites_of(config) if not is_measured(suite, home_of(suite, stage))]


def measure(config: Mapping[str, Any], *, allow: Collection[str] = ()) -> None:
    """Measure a finished stage by the suites that it lacks, without training anything. Raises UserError where they cannot be asked."""
    suites, stage = lacking(config), Path(config["output_dir"])
    if not suites or not (stage / "artifact").is_dir():
        return
    print(f"measuring its artifact by {', '.join(suite.name for suite in suites)}", flush=True)
    check_suites(config, allow)
    for suite in suites:
        home = home_of(suite, stage)
        measure_end(entering.applied(dict(config)), [suite], stage / "artifact", device=None, allow=allow, home=home)


def as_asked(result: Mapping[str, Any] | None, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """A stage's result.json with the metrics of those suites that the config asks for, as it asks, and of no others."""
    if result is None:
        return None
    stage = Path(config["output_dir"])
    others = {name for file in (stage / FOLDER).glob("*.json") for name in found_in(stage, file.stem)}
    asked = [found_in(home_of(suite, stage), suite.name) for suite in suites_of(config)]
    metrics = {name: value for name, value in result["metrics"].items() if name not in others}
    return {**result, "metrics": {**metrics, **{name: value for found in asked for name, value in found.items()}}}


def keep(config: Mapping[str, Any], pipeline: Path) -> None:
    """Copy what the suites of a stage found into its pipeline's own folder."""
    for suite in suites_of(config):
        for file in (home_of(suite, Path(config["output_dir"])) / FOLDER).glob(f"{suite.name}.*"):
            (pipeline / FOLDER).mkdir(exist_ok=True)
            write_atomic(pipeline / FOLDER / file.name, file.read_bytes())
