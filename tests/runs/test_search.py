"""`-m hydra/sweeper=optuna`: what is searched, a search that is killed and goes on, and the best trial as an experiment."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.__main__ import main
from posttrain.errors import ConfigError
from posttrain.runs.compose import compose
from posttrain.runs.search.best import write_best
from posttrain.runs.search.command import Sweep, run_search
from posttrain.runs.search.settings import goal, settings_of
from posttrain.runs.search.space import Options, Scale, space_of
from posttrain.runs.search.store import open_store
from posttrain.runs.sweep_jobs import Job

NODE = yaml.safe_load((Path(__file__).parents[2] / "conf/hydra/sweeper/optuna.yaml").read_text())
TINY = ["tracking=none", "hardware=cpu", "limit=40", "data.generator.held_out=8", "global_batch=8", "max_steps=2", "evaluation=none"]


def no_options(_: str) -> list[str]:
    return []


def test_what_is_searched() -> None:
    space = space_of(
        ["lr=tag(log,interval(1e-5,1e-2))", "n=int(interval(2,8))", "b=range(8,65,8)", "f=range(0.1,0.5,0.1)", "m=sft,dpo", "k=3"],
        no_options,
    )
    assert space.dimensions == (
        Scale("lr", 1e-5, 1e-2, None, True, False),
        Scale("n", 2, 8, None, False, True),
        Scale("b", 8, 64, 8, False, True),
        Scale("f", 0.1, 0.4, 0.1, False, False),
        Options("m", ("m=sft", "m=dpo")),
    )
    assert space.job({"lr": 1e-3 / 3, "n": 4, "b": 16, "f": 0.30000000000000004, "m": "m=dpo"}) == {
        "k": "k=3", "lr": "lr=0.000333333333333", "n": "n=4", "b": "b=16", "f": "f=0.3", "m": "m=dpo",
    }  # fmt: skip
    assert len(space.corners()) == 6, "each end of each dimension once, the line that all first ends make not again"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lr=interval(1,0.1)", "1 is not below 0.1"),
        ("lr=interval(1,1)", "1 is not below 1"),
        ("lr=tag(log,interval(0,1))", "needs numbers above 0"),
        ("lr=tag(log,range(1,9,2))", "a logarithmic scale has no steps"),
        ("lr=tag(logg,interval(1,2))", "no tag 'logg'"),
        ("lr=interval(0,inf)", "finite"),
        ("n=range(9,1)", "is not below"),
        ("m=choice(a)", "has one value"),
        ("m=glob(zz*)", "no value matches"),
        ("lr=1", "there is nothing to search"),
    ],
)
def test_bad_ranges(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space_of([line], no_options)


def test_bad_settings_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        settings_of({**NODE, "n_trials": 0, "n_jobs": 0, "metric": "accuracy"})
    assert [problem.where for problem in error.value.problems] == [
        "hydra.sweeper.n_trials=0", "hydra.sweeper.n_jobs=0", "hydra.sweeper.metric=accuracy",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="sampler"):
        settings_of({**NODE, "sampler": "grid"})
    monitor: dict[str, Any] = {"checkpoint": {"monitor": "-val/reward"}}
    assert goal(settings_of(NODE), monitor) == ("val/reward", False)
    assert goal(settings_of({**NODE, "metric": "val/loss"}), monitor) == ("val/loss", True)
    assert goal(settings_of({**NODE, "metric": "eval/exact_match", "direction": "minimize"}), monitor) == ("eval/exact_match", True)


class Killed(BaseException):
    """What SIGKILL would be."""


class Runs:
    """Runs that only write result.json: val/loss is lowest at lr = 1e-3, a batch of 13 fails. killed: launches after which all is over."""

    def __init__(self, folder: Path, killed: Sequence[int] = ()) -> None:
        self.folder, self.killed, self.launched = folder, list(killed), 0

    def check(self, name: str, combination: Mapping[str, str]) -> Job:
        values = dict(line.split("=") for line in combination.values())
        config = {**values, "output_dir": str(self.folder / name), "tracking": {"_target_": "none"}}
        config |= {"checkpoint": {"monitor": "val/loss"}, "resume": "auto"}
        return Job(name, tuple(combination.values()), config, name)

    def launch(self, jobs: Sequence[Job]) -> list[int]:
        self.launched += 1
        if self.launched in self.killed:
            raise Killed
        for job in jobs:
            folder = Path(job.config["output_dir"])
            folder.mkdir(parents=True, exist_ok=True)
            loss = abs(math.log10(float(job.config["lr"])) + 3)
            status = "failed" if job.config["batch"] == "13" else "finished"
            (folder / "result.json").write_text(json.dumps({"status": status, "metrics": {"val/loss": loss}}))
        if -self.launched in self.killed:
            raise Killed
        return [0] * len(jobs)

    def search(self, **settings: Any) -> int:
        space = space_of(["lr=tag(log,interval(1e-5,1e-1))", "batch=8,13"], no_options)
        sweep = Sweep(self.folder, (), (), False, self.check, self.launch, lambda job, parent: job)
        return run_search({**NODE, "startup_trials": 3, **settings}, space, sweep)

    def trials(self) -> list[tuple[Any, ...]]:
        space = space_of(["lr=tag(log,interval(1e-5,1e-1))", "batch=8,13"], no_options)
        study = open_store(self.folder, settings_of({**NODE, "startup_trials": 3}), space, "val/loss", lower=True).study
        return [(trial.number, trial.state.name, trial.value, trial.params) for trial in study.get_trials()]


def test_a_search_that_was_killed_is_the_search_that_was_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Runs(tmp_path / "whole")
    assert whole.search(n_trials=10) == 0
    broken = Runs(tmp_path / "broken", killed=(2, -6, 8))
    for trials in (5, 10, 10):
        with pytest.raises(Killed):
            broken.search(n_trials=trials)
    assert broken.search(n_trials=10) == 0
    assert broken.trials() == whole.trials()
    assert {state for _, state, _, _ in whole.trials()} == {"COMPLETE", "FAIL"}
    assert min(value for _, _, value, _ in whole.trials() if value is not None) < 0.2
    assert "trials gave no value" in capsys.readouterr().out
    launched = broken.launched
    assert broken.search(n_trials=10) == 0
    assert broken.launched == launched, "there was nothing left to do"
    with pytest.raises(ConfigError, match="holds a search with other seed"):
        broken.search(n_trials=20, seed=1)


def test_an_unknown_metric_is_told_and_can_be_mended(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    with pytest.raises(ConfigError, match="did you mean val/loss"):
        runs.search(n_trials=3, metric="val/los")
    assert runs.search(n_trials=3, metric="val/loss") == 0


def test_trials_that_start_together(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    assert runs.search(n_trials=5, n_jobs=2) == 0
    assert (runs.launched, len(runs.trials())) == (3, 5)


@pytest.mark.parametrize(
    "lines",
    [
        ["experiment=nano_rlvr", "method.loss=dr_grpo", "optimizer.lr=0.0003", "seed=3", "reward=[math,length]"],
        ["method=dpo", "method.loss=ipo", "model.peft=lora", "optimizer=sgd", "scheduler=linear", "rollout=null"],
        ["experiment=quickstart", "method=grpo", "rollout.temperature=0.5", "data.sources=null"],
    ],
)
def test_the_best_is_an_experiment(tmp_path: Path, lines: list[str]) -> None:
    file = write_best([*lines, f"output_dir={tmp_path}"], tmp_path, (), comment="The best")
    assert file is not None
    wanted, found = compose(lines), compose(["experiment=best"], config_dirs=[tmp_path / "conf"])
    assert found == wanted


@pytest.mark.slow
def test_a_true_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["-m", "hydra/sweeper=optuna", "optimizer.lr=tag(log,interval(1e-6,1e-2))", *TINY, "output_dir=out", "hydra.sweeper.n_trials=2"]
    assert main([*line, "hydra.sweeper.trials=3", "global_batch=choice(8,0)"]) == 2
    assert main([*line, "global_batch=choice(8,0)", "optimizer.lrr=1"]) == 2
    said = capsys.readouterr().err
    assert "did you mean hydra.sweeper.n_trials" in said
    assert "global_batch" in said
    assert "optimizer.lrr" in said
    assert not (tmp_path / "out").exists()
    assert main([*line, "hydra.sweeper.metric=val/los"]) == 2
    assert main([*line, "max_steps=3"]) == 2
    said = capsys.readouterr().err
    assert "no run measures that" in said
    assert "nothing was started" not in said.split("no run measures that")[0]
    assert "max_steps: the run in output_dir has 2, this command 3" in said
    assert main(line) == 0
    record = json.loads((tmp_path / "out" / "sweep.json").read_text())
    losses = {job["folder"]: json.loads((Path(job["folder"]) / "result.json").read_text())["metrics"]["val/loss"] for job in record["jobs"]}
    assert len(losses) == 2
    best = min(losses, key=lambda folder: losses[folder])
    again = compose(["experiment=best"], config_dirs=[tmp_path / "out" / "conf"])
    trained = yaml.safe_load((Path(best) / "config.yaml").read_text())
    assert again["optimizer"] == trained["optimizer"]
    assert "experiment=best" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "out")
